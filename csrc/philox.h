// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): four 32-bit words from four counter words and a 64-bit key.
#pragma once

#include "simd.h"

namespace ffalora {

// Counter words (first + i, rest…) for i in 0 … COUNT-1; the words come out word-major: words[w][i].
template <int COUNT>
FFALORA_INLINE void philox(uint32_t first, const uint32_t (&rest)[3], uint64_t key, uint32_t (&words)[4][COUNT]) {
  for (int i = 0; i < COUNT; ++i) {
    uint32_t c0 = first + static_cast<uint32_t>(i), c1 = rest[0], c2 = rest[1], c3 = rest[2];
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(p1);
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words[0][i] = c0;
    words[1][i] = c1;
    words[2][i] = c2;
    words[3][i] = c3;
  }
}

}  // namespace ffalora
