// Secure normals on a GPU: the stream of csrc/chacha20.h, two numbers from each block, one block a thread.
//
// Compiled with --fmad=false, so that the bits are those of the processor. Free of torch: tensors come as addresses,
// the stream as a handle. The key travels as arguments of the kernel and is never written to device memory.
#include <cuda_runtime.h>

#include <cstdint>

#include "../chacha20.h"

namespace {

constexpr int kThreads = 128;

__device__ void block_words(uint64_t k0, uint64_t k1, uint64_t k2, uint64_t k3, uint64_t n0, uint32_t n1,
                            uint32_t block, uint32_t (&words)[16]) {
  const uint64_t pairs[4] = {k0, k1, k2, k3};
  ffalora::ChaChaKey key;
#pragma unroll
  for (int i = 0; i < 8; ++i) key.words[i] = static_cast<uint32_t>(pairs[i / 2] >> (32 * (i % 2)));
  key.nonce[0] = static_cast<uint32_t>(n0);
  key.nonce[1] = static_cast<uint32_t>(n0 >> 32);
  key.nonce[2] = n1;
  uint32_t input[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) input[i] = ffalora::chacha20_input(key, block, i);
  ffalora::chacha20(input, words);
}

}  // namespace

// numbers[2i], numbers[2i+1] += std · the pair of block i.
extern "C" __global__ void ffalora_secure_normals(double* numbers, int64_t count, double std, uint64_t k0, uint64_t k1,
                                                  uint64_t k2, uint64_t k3, uint64_t n0, uint32_t n1) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (2 * i >= count) return;
  uint32_t words[16];
  block_words(k0, k1, k2, k3, n0, n1, static_cast<uint32_t>(i), words);
  const ffalora::Pair normals = ffalora::secure_pair(words);
  numbers[2 * i] += std * normals.first;
  if (2 * i + 1 < count) numbers[2 * i + 1] += std * normals.second;
}

// Launches on a stream; key: eleven words on the host (eight of key, three of nonce). Returns CUDA's error code, or -1
// for more numbers than a key has blocks for.
extern "C" int ffalora_launch_secure_normals(double* numbers, int64_t count, double std, const uint32_t* key,
                                             void* stream) {
  if (count <= 0) return 0;
  const int64_t blocks = (count + 1) / 2, grid = (blocks + kThreads - 1) / kThreads;
  if (blocks > (int64_t{1} << 32)) return -1;
  const auto pair = [&](int i) { return static_cast<uint64_t>(key[i + 1]) << 32 | key[i]; };
  ffalora_secure_normals<<<static_cast<unsigned>(grid), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      numbers, count, std, pair(0), pair(2), pair(4), pair(6), pair(8), key[10]);
  return static_cast<int>(cudaGetLastError());
}
