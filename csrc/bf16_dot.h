// The products of tile.h by the processor's bfloat16 dot instruction (AVX512_BF16): two products of bfloat16 a lane,
// added in float32. It takes subnormal numbers (below 1.2e-38) as zero, in its factors and in its sums: backward and
// outer leave it so, expand_ works around subnormal factors. Both factors are bfloat16, so a float32 b is rounded, as
// it is for a GPU's tensor cores. Include contract.h first.
#pragma once

#include "tile.h"

namespace ffalora {

inline bool bf16_dot() { return level() >= kAvx512Bf16; }

#ifdef FFALORA_BF16_DOT

// Inline assembly, since the code around it is compiled for several instruction sets.
FFALORA_INLINE void add_dot(Vec<float, 16>& sum, const Vec<uint16_t, 32>& x, const Vec<uint16_t, 32>& y) {
  Vec<float, 16> in_register = sum;
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(in_register) : "v"(x), "v"(y));
  sum = in_register;
}

FFALORA_INLINE Vec<uint16_t, 32> load_32(const bf16* from) {
  Vec<uint16_t, 32> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

FFALORA_INLINE Vec<uint16_t, 32> load_words(const uint32_t* words) {
  return load_32(reinterpret_cast<const bf16*>(words));
}

FFALORA_INLINE uint32_t bits_of(bf16 x) { return x.bits; }
FFALORA_INLINE uint32_t bits_of(float x) {
  bf16 rounded;
  from_float(x, &rounded);
  return rounded.bits;
}

// Two vectors of 32 as 32 pairs: x0 y0 x1 y1 …
class Interleaving {
 public:
  FFALORA_INLINE Interleaving() {
    for (int i = 0; i < 32; ++i) {
      low_[i] = i / 2 + 32 * (i % 2);
      high_[i] = low_[i] + 16;
    }
    keep(low_);
    keep(high_);
  }

  FFALORA_INLINE Vec<uint16_t, 32> low(const Vec<uint16_t, 32>& x, const Vec<uint16_t, 32>& y) const {
    return pick(x, y, low_);
  }
  FFALORA_INLINE Vec<uint16_t, 32> high(const Vec<uint16_t, 32>& x, const Vec<uint16_t, 32>& y) const {
    return pick(x, y, high_);
  }

 private:
  FFALORA_INLINE static Vec<uint16_t, 32> pick(Vec<uint16_t, 32> x, const Vec<uint16_t, 32>& y,
                                               const Vec<uint16_t, 32>& from) {
    __asm__("vpermt2w %2, %1, %0" : "+v"(x) : "v"(from), "v"(y));
    return x;
  }

  Vec<uint16_t, 32> low_, high_;
};

// Tokens in pairs: chunk.narrow holds words (narrow[2m, r], narrow[2m+1, r]), [⌈tokens/2⌉, padded].
struct DotProducts {
  static constexpr ptrdiff_t kPackedBytes = kChunkTokens * 32 * 2;

  template <int L>
  FFALORA_INLINE static void add(const GradientChunk<bf16>& c, ptrdiff_t n, ptrdiff_t r,
                                 Vec<float, L> (&sum)[2][kRanks<L>]) {
    Interleaving order;
    for (ptrdiff_t m = 0; m < c.tokens; m += 2) {
      Vec<uint16_t, 32> even, odd;
      load_rows(c, m, n, even, odd);
      add_pair(order.low(even, odd), order.high(even, odd), c, m, r, sum);
    }
  }

  template <int L>
  FFALORA_INLINE static void add_packed(const GradientChunk<bf16>& c, const void* packed, ptrdiff_t r,
                                        Vec<float, L> (&sum)[2][kRanks<L>]) {
    const auto* pairs = static_cast<const bf16*>(packed);
    for (ptrdiff_t m = 0; m < c.tokens; m += 2)
      add_pair(load_32(pairs + m * 32), load_32(pairs + m * 32 + 32), c, m, r, sum);
  }

  template <int L>
  FFALORA_INLINE static void pack(const GradientChunk<bf16>& c, ptrdiff_t n, ptrdiff_t columns, void* packed) {
    auto* to = static_cast<bf16*>(packed);
    if constexpr (L == 16)
      if (columns == 32) {
        Interleaving order;
        for (ptrdiff_t m = 0; m < c.tokens; m += 2) {
          Vec<uint16_t, 32> even, odd;
          load_rows(c, m, n, even, odd);
          const Vec<uint16_t, 32> low = order.low(even, odd), high = order.high(even, odd);
          std::memcpy(to + m * 32, &low, sizeof(low));
          std::memcpy(to + m * 32 + 32, &high, sizeof(high));
        }
        return;
      }
    for (ptrdiff_t m = 0; m < c.tokens; m += 2)
      for (ptrdiff_t j = 0; j < 32; ++j)
        for (int half = 0; half < 2; ++half) {
          const bool there = j < columns && m + half < c.tokens;
          to[m * 32 + 2 * j + half] = there ? c.wide[(m + half) * c.wide_stride + n + j] : bf16{0};
        }
  }

 private:
  // Columns n … n+31 of tokens m and m+1; zeros stand for a token beyond the last.
  FFALORA_INLINE static void load_rows(const GradientChunk<bf16>& c, ptrdiff_t m, ptrdiff_t n, Vec<uint16_t, 32>& even,
                                       Vec<uint16_t, 32>& odd) {
    const bf16* row = c.wide + m * c.wide_stride + n;
    even = load_32(row);
    __builtin_prefetch(row + 32);
    odd = Vec<uint16_t, 32>{};
    if (m + 1 < c.tokens) {
      odd = load_32(row + c.wide_stride);
      __builtin_prefetch(row + c.wide_stride + 32);
    }
  }

  FFALORA_INLINE static void add_pair(const Vec<uint16_t, 32>& low, const Vec<uint16_t, 32>& high,
                                      const GradientChunk<bf16>& c, ptrdiff_t m, ptrdiff_t r,
                                      Vec<float, 16> (&sum)[2][8]) {
    const auto* words = reinterpret_cast<const uint32_t*>(c.narrow) + m / 2 * c.padded + r;
    for (int i = 0; i < 8; ++i) {
      const auto pair = bit_cast<Vec<uint16_t, 32>>(Vec<uint32_t, 16>{} + words[i]);
      add_dot(sum[0][i], low, pair);
      add_dot(sum[1][i], high, pair);
    }
  }
};

#endif

}  // namespace ffalora
