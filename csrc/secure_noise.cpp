// Secure normals: two from each ChaCha20 block, many blocks at once.
#include "secure_noise.h"

#include <cerrno>
#include <stdexcept>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/random.h>
#include <unistd.h>
#endif

#include "simd.h"
#include "threads.h"

namespace ffalora {
namespace {

constexpr int kBlocks = 16;           // ChaCha20 blocks handled at once
constexpr ptrdiff_t kItem = 1 << 14;  // numbers a thread takes at once
constexpr uint64_t kMostBlocks = uint64_t{1} << 32;

// words[w][i]: word w of block counter + i.
template <int L>
FFALORA_INLINE void blocks_at(const ChaChaKey& key, uint32_t counter, uint32_t (&words)[16][kBlocks]) {
  using Word = Vec<uint32_t, L>;
  for (int part = 0; part < kBlocks; part += L) {
    Word input[16] = {}, output[16];
    for (int i = 0; i < 16; ++i) input[i] = Word{} + chacha20_input(key, counter + part, i);
    Word ramp{};
    for (int i = 0; i < L; ++i) ramp[i] = i;
    input[12] += ramp;
    chacha20(input, output);
    for (int i = 0; i < 16; ++i) std::memcpy(&words[i][part], &output[i], sizeof(Word));
  }
}

struct KeyStream {
  template <int L>
  FFALORA_INLINE static void run(const ChaChaKey* key, uint32_t counter, uint32_t* words) {
    uint32_t columns[16][kBlocks];
    blocks_at<L>(*key, counter, columns);
    for (int i = 0; i < kBlocks; ++i)
      for (int w = 0; w < 16; ++w) words[16 * i + w] = columns[w][i];
  }
};

// The 2·kBlocks normals of blocks counter …: secure_pair of each.
struct SecureNormals {
  template <int L>
  FFALORA_INLINE static void run(const ChaChaKey* key, uint32_t counter, double* normals) {
    uint32_t words[16][kBlocks];
    blocks_at<L>(*key, counter, words);
    double first[kBlocks] = {}, second[kBlocks] = {};
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < kBlocks; ++i) {
        const Pair z = block_pair(words[4 * j][i], words[4 * j + 1][i], words[4 * j + 2][i], words[4 * j + 3][i]);
        first[i] += z.first;
        second[i] += z.second;
      }
    for (int i = 0; i < kBlocks; ++i) {
      normals[2 * i] = 0.5 * first[i];
      normals[2 * i + 1] = 0.5 * second[i];
    }
  }
};

struct WipedKey : ChaChaKey {
  WipedKey() : ChaChaKey{} {
#if defined(__unix__) || defined(__APPLE__)
    if (getentropy(words, sizeof words) != 0)
      throw std::system_error(errno, std::generic_category(), "the operating system gave no entropy for secure noise");
#else
    throw std::runtime_error("secure noise needs getentropy, which this operating system lacks");
#endif
  }
  WipedKey(const WipedKey&) = delete;
  WipedKey& operator=(const WipedKey&) = delete;
  ~WipedKey() {
    volatile uint32_t* word = words;
    for (int i = 0; i < 8; ++i) word[i] = 0;
  }
};

}  // namespace

void key_stream(const ChaChaKey& key, uint32_t block, ptrdiff_t blocks, uint32_t* words) {
  uint32_t some[16 * kBlocks];
  for (ptrdiff_t done = 0; done < blocks; done += kBlocks) {
    dispatch<KeyStream>(&key, block + static_cast<uint32_t>(done), static_cast<uint32_t*>(some));
    const ptrdiff_t take = blocks - done < kBlocks ? blocks - done : kBlocks;
    std::memcpy(words + 16 * done, some, take * 16 * sizeof(uint32_t));
  }
}

void add_normals_of_key(const ChaChaKey& key, uint32_t block, double* numbers, ptrdiff_t count, double std,
                        int threads) {
  if (block + (static_cast<uint64_t>(count) + 1) / 2 > kMostBlocks)
    throw std::invalid_argument("a draw of secure noise has at most 2^33 numbers; draw it in parts");
  const ptrdiff_t items = (count + kItem - 1) / kItem;
  parallel_for(items, threads, [&](ptrdiff_t item) {
    double normals[2 * kBlocks];
    const ptrdiff_t end = item + 1 == items ? count : (item + 1) * kItem;
    for (ptrdiff_t at = item * kItem; at < end; at += 2 * kBlocks) {
      dispatch<SecureNormals>(&key, block + static_cast<uint32_t>(at / 2), static_cast<double*>(normals));
      const ptrdiff_t take = end - at < 2 * kBlocks ? end - at : 2 * kBlocks;
      for (ptrdiff_t i = 0; i < take; ++i) numbers[at + i] += std * normals[i];
    }
  });
}

void add_secure_normals(double* numbers, ptrdiff_t count, double std, int threads) {
  const WipedKey key;
  add_normals_of_key(key, 0, numbers, count, std, threads);
}

}  // namespace ffalora
