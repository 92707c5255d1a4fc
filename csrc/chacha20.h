// ChaCha20 (RFC 8439, section 2.3) on scalar words or vectors of them, and the secure normals made of its blocks. The
// processor and the GPU include this one file, and the build forbids contraction: both give the same bits.
#pragma once

#include "normal.h"

namespace ffalora {

template <int BITS, class Word>
FFALORA_SHARED Word rotate_left(Word x) {
  return (x << BITS) | (x >> (32 - BITS));
}

template <class Word>
FFALORA_SHARED void quarter_round(Word& a, Word& b, Word& c, Word& d) {
  a += b;
  d = rotate_left<16>(d ^ a);
  c += d;
  b = rotate_left<12>(b ^ c);
  a += b;
  d = rotate_left<8>(d ^ a);
  c += d;
  b = rotate_left<7>(b ^ c);
}

// The sixteen words of a block from its input: four constants, eight words of key, the counter, three of nonce.
template <class Word>
FFALORA_SHARED void chacha20(const Word (&input)[16], Word (&x)[16]) {
  for (int i = 0; i < 16; ++i) x[i] = input[i];
  for (int round = 0; round < 10; ++round) {
    quarter_round(x[0], x[4], x[8], x[12]);
    quarter_round(x[1], x[5], x[9], x[13]);
    quarter_round(x[2], x[6], x[10], x[14]);
    quarter_round(x[3], x[7], x[11], x[15]);
    quarter_round(x[0], x[5], x[10], x[15]);
    quarter_round(x[1], x[6], x[11], x[12]);
    quarter_round(x[2], x[7], x[8], x[13]);
    quarter_round(x[3], x[4], x[9], x[14]);
  }
  for (int i = 0; i < 16; ++i) x[i] += input[i];
}

struct ChaChaKey {
  uint32_t words[8];
  uint32_t nonce[3];
};

// Word i of the input of block `counter`.
FFALORA_SHARED uint32_t chacha20_input(const ChaChaKey& key, uint32_t counter, int i) {
  constexpr uint32_t kConstants[4] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};
  return i < 4 ? kConstants[i] : i < 12 ? key.words[i - 4] : i == 12 ? counter : key.nonce[i - 13];
}

// 52 random bits as the midpoint of one of 2^52 equal parts of (0, 1), exactly.
FFALORA_SHARED double unit_interval(uint32_t low, uint32_t high) {
  const uint64_t bits = (static_cast<uint64_t>(high) << 20) + (low >> 12);
  return (double_of(bits | 0x3ff0000000000000u) - 1.0) + 0x1p-53;
}

// Normals of pair j of a block: words 4j … 4j+3.
FFALORA_SHARED Pair block_pair(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  return box_muller(unit_interval(w0, w1), unit_interval(w2, w3));
}

// Two independent standard normals from a block, each the sum of four over 2 (Holohan and Braghin 2021): a single
// normal from floating-point arithmetic leaves gaps that give the noiseless value away, and finding the terms of a sum
// of four takes a search through the 2^(3·104) values of the other pairs.
FFALORA_SHARED Pair secure_pair(const uint32_t (&words)[16]) {
  Pair sum{0.0, 0.0};
  for (int j = 0; j < 4; ++j) {
    const Pair z = block_pair(words[4 * j], words[4 * j + 1], words[4 * j + 2], words[4 * j + 3]);
    sum.first += z.first;
    sum.second += z.second;
  }
  return {0.5 * sum.first, 0.5 * sum.second};
}

}  // namespace ffalora
