// expand_'s product by the bfloat16 dot instruction: columns in the lanes, ranks in pairs. Include contract.h first.
//
// The instruction takes subnormal numbers as zero. So a token whose h has one, or whose client's b has one, is worked
// on in float32; which of the two is done depends on that token and that client alone.
#pragma once

#include "bf16_dot.h"

#ifdef FFALORA_BF16_DOT

namespace ffalora {

// Whether one of `count` numbers is subnormal.
FFALORA_INLINE bool any_subnormal(const bf16* numbers, ptrdiff_t count) {
  Vec<uint16_t, 8> found{};
  ptrdiff_t j = 0;
  for (; j + 8 <= count; j += 8) {
    Vec<uint16_t, 8> v;
    std::memcpy(&v, numbers + j, sizeof(v));
    found |= bit_cast<Vec<uint16_t, 8>>(((v & 0x7fff) - 1) < 0x7f);
  }
  for (; j < count; ++j) found[0] |= static_cast<uint16_t>((numbers[j].bits & 0x7fff) - 1) < 0x7f;
  const auto halves = bit_cast<Vec<uint64_t, 2>>(found);
  return (halves[0] | halves[1]) != 0;
}

// b in words of two neighbouring ranks, [⌈rank/2⌉, padded columns]; of 32 columns the even ones come first, as they do
// when 32 numbers of y are split into the low and the high halves of 16 words.
struct ExpandWords {
  static ptrdiff_t stride(ptrdiff_t columns) { return padded_to(columns, 32) + 16; }  // not a power of two
  static ptrdiff_t size(ptrdiff_t columns, ptrdiff_t rank) { return (rank + 1) / 2 * stride(columns); }

  template <int, class From>
  FFALORA_INLINE static void run(const From* b, ptrdiff_t columns, ptrdiff_t rank, uint32_t* words, bool* subnormal) {
    for (ptrdiff_t n = 0; n < columns; n += 32)
      for (ptrdiff_t r = 0; r < rank; r += 2) {
        uint32_t* to = words + r / 2 * stride(columns) + n;
        for (ptrdiff_t j = 0; j < 32; ++j) {
          const ptrdiff_t column = n + 2 * (j % 16) + j / 16;
          const From* row = b + column * rank + r;
          to[j] = column < columns ? bits_of(row[0]) | (r + 1 < rank ? bits_of(row[1]) << 16 : 0) : 0;
        }
      }
    *subnormal = false;
    for (ptrdiff_t r = 0; r < rank; r += 2, words += stride(columns))
      if (any_subnormal(reinterpret_cast<const bf16*>(words), padded_to(columns, 32) * 2)) *subnormal = true;
  }
};

// For a range of tokens of one client: y[m, n] += scale Σ_r h[m, r] b[n, r].
struct ExpandDotChunk {
  bf16* y;
  ptrdiff_t y_stride, width;
  const bf16* h;
  ptrdiff_t h_stride, rank, tokens;
  const uint32_t* words;
  bool subnormal;  // is a number of b
  float scale;
};

struct ExpandDot {
  template <int>
  FFALORA_INLINE static void run(const ExpandDotChunk* chunk) {
    const ExpandDotChunk& c = *chunk;
    for (ptrdiff_t m = 0; m < c.tokens;) {
      bool plain = !c.subnormal && m + 4 <= c.tokens;
      for (int i = 0; i < 4; ++i) plain = plain && !any_subnormal(c.h + (m + i) * c.h_stride, c.rank);
      if (plain) {
        rows<4, DotStep>(c, m);
        m += 4;
        continue;
      }
      const bool exact = c.subnormal || any_subnormal(c.h + m * c.h_stride, c.rank);
      exact ? rows<1, FloatStep>(c, m) : rows<1, DotStep>(c, m);
      ++m;
    }
  }

 private:
  // sum += the products of two ranks.
  struct DotStep {
    FFALORA_INLINE static void add(Vec<float, 16>& sum, const Vec<uint16_t, 32>& x, const Vec<uint16_t, 32>& y) {
      add_dot(sum, x, y);
    }
  };
  struct FloatStep {
    FFALORA_INLINE static void add(Vec<float, 16>& sum, const Vec<uint16_t, 32>& x, const Vec<uint16_t, 32>& y) {
      const auto p = bit_cast<Vec<uint32_t, 16>>(x), q = bit_cast<Vec<uint32_t, 16>>(y);
      sum += bit_cast<Vec<float, 16>>(p << 16) * bit_cast<Vec<float, 16>>(q << 16);
      sum += bit_cast<Vec<float, 16>>(p & 0xffff0000u) * bit_cast<Vec<float, 16>>(q & 0xffff0000u);
    }
  };

  static constexpr int kGroup = 32;  // columns of two vectors

  template <int ROWS, class Step>
  FFALORA_INLINE static void rows(const ExpandDotChunk& c, ptrdiff_t m) {
    bf16* y = c.y + m * c.y_stride;
    const bf16* h = c.h + m * c.h_stride;
    ptrdiff_t n = 0;
    for (; n + 2 * kGroup <= c.width; n += 2 * kGroup) {
      for (int i = 0; i < ROWS; ++i)
        for (int g = 0; g < 2; ++g) __builtin_prefetch(y + (i + ROWS) * c.y_stride + n + g * kGroup, 1);
      tile<ROWS, 2, Step>(c, y + n, c.y_stride, h, n);
    }
    for (; n + kGroup <= c.width; n += kGroup) tile<ROWS, 1, Step>(c, y + n, c.y_stride, h, n);
    if (n == c.width) return;
    alignas(64) bf16 edge[ROWS * kGroup] = {};
    const size_t bytes = (c.width - n) * sizeof(bf16);
    for (int i = 0; i < ROWS; ++i) std::memcpy(edge + i * kGroup, y + i * c.y_stride + n, bytes);
    tile<ROWS, 1, Step>(c, edge, kGroup, h, n);
    for (int i = 0; i < ROWS; ++i) std::memcpy(y + i * c.y_stride + n, edge + i * kGroup, bytes);
  }

  template <int ROWS, int GROUPS, class Step>
  FFALORA_INLINE static void tile(const ExpandDotChunk& c, bf16* y, ptrdiff_t stride, const bf16* h, ptrdiff_t n) {
    Vec<float, 16> sum[ROWS][2 * GROUPS];
    FFALORA_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      FFALORA_UNROLL
      for (int v = 0; v < 2 * GROUPS; ++v) sum[i][v] = Vec<float, 16>{};
    }
    const uint32_t* words = c.words + n;
    ptrdiff_t r = 0;
    for (; r + 2 <= c.rank; r += 2, words += ExpandWords::stride(c.width)) {
      uint32_t pairs[ROWS];
      for (int i = 0; i < ROWS; ++i) std::memcpy(&pairs[i], h + i * c.h_stride + r, sizeof(uint32_t));
      add<ROWS, GROUPS, Step>(words, pairs, sum);
    }
    if (r < c.rank) {
      uint32_t pairs[ROWS];
      for (int i = 0; i < ROWS; ++i) pairs[i] = h[i * c.h_stride + r].bits;
      add<ROWS, GROUPS, Step>(words, pairs, sum);
    }
    FFALORA_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      FFALORA_UNROLL
      for (int g = 0; g < GROUPS; ++g) {
        bf16* to = y + i * stride + g * kGroup;
        const auto old = bit_cast<Vec<uint32_t, 16>>(load_32(to));
        const auto even = bit_cast<Vec<float, 16>>(old << 16) + sum[i][2 * g] * c.scale;
        const auto odd = bit_cast<Vec<float, 16>>(old & 0xffff0000u) + sum[i][2 * g + 1] * c.scale;
        const auto rounded = rounded_high<16>(even) >> 16 | (rounded_high<16>(odd) & 0xffff0000u);
        std::memcpy(to, &rounded, sizeof(rounded));
      }
    }
  }

  template <int ROWS, int GROUPS, class Step>
  FFALORA_INLINE static void add(const uint32_t* words, const uint32_t (&pairs)[ROWS],
                                 Vec<float, 16> (&sum)[ROWS][2 * GROUPS]) {
    Vec<uint16_t, 32> factors[2 * GROUPS];
    for (int v = 0; v < 2 * GROUPS; ++v) {
      factors[v] = load_words(words + v * 16);
      keep(factors[v]);
    }
    for (int i = 0; i < ROWS; ++i) {
      auto pair = bit_cast<Vec<uint16_t, 32>>(Vec<uint32_t, 16>{} + pairs[i]);
      keep(pair);
      for (int v = 0; v < 2 * GROUPS; ++v) Step::add(sum[i][v], factors[v], pair);
    }
  }
};

}  // namespace ffalora

#endif
