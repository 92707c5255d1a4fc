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

// b in words of two neighbouring ranks, [rows, padded columns]; of 32 columns the even ones come first, as they do when
// 32 numbers of y are split into the low and the high halves of 16 words. Rows beyond the ranks hold zeros.
struct ExpandWords {
  static ptrdiff_t stride(ptrdiff_t columns) { return padded_to(columns, 32) + 16; }  // not a power of two

  template <int, class From>
  FFALORA_INLINE static void run(const From* b, ptrdiff_t columns, ptrdiff_t rank, ptrdiff_t rows, uint32_t* words,
                                 bool* subnormal) {
    for (ptrdiff_t n = 0; n < columns; n += 32)
      for (ptrdiff_t r = 0; r < 2 * rows; r += 2) {
        uint32_t* to = words + r / 2 * stride(columns) + n;
        for (ptrdiff_t j = 0; j < 32; ++j) {
          const ptrdiff_t column = n + 2 * (j % 16) + j / 16;
          const From* row = b + column * rank + r;
          const bool there = column < columns && r < rank;
          to[j] = there ? bits_of(row[0]) | (r + 1 < rank ? bits_of(row[1]) << 16 : 0) : 0;
        }
      }
    *subnormal = false;
    for (ptrdiff_t r = 0; r < rows; ++r, words += stride(columns))
      if (any_subnormal(reinterpret_cast<const bf16*>(words), padded_to(columns, 32) * 2)) *subnormal = true;
  }
};

// For a range of tokens of one client: y[m, n] += scale Σ_r h[m, r] b[n, r].
struct ExpandDotChunk {
  bf16* y;
  ptrdiff_t y_stride, width;
  const bf16* h;
  ptrdiff_t h_stride, rank, tokens;
  const uint32_t* words;  // ExpandWords
  bool subnormal;         // is a number of b
  float scale;

  FFALORA_INLINE bool needs_float(ptrdiff_t m) const { return subnormal || any_subnormal(h + m * h_stride, rank); }

  // To the even and the odd ones of columns n … n+31, as far as they are there.
  FFALORA_INLINE void add(ptrdiff_t m, ptrdiff_t n, const Vec<float, 16>& even_sum,
                          const Vec<float, 16>& odd_sum) const {
    bf16* to = y + m * y_stride + n;
    if (width - n >= 32) return add_32(to, even_sum, odd_sum);
    alignas(64) bf16 edge[32] = {};
    std::memcpy(edge, to, (width - n) * sizeof(bf16));
    add_32(edge, even_sum, odd_sum);
    std::memcpy(to, edge, (width - n) * sizeof(bf16));
  }

  // A whole row, with subnormal factors as they are.
  FFALORA_INLINE void add_in_float(ptrdiff_t m) const {
    for (ptrdiff_t n = 0; n < width; n += 32) {
      Vec<float, 16> even{}, odd{};
      const uint32_t* row = words + n;
      for (ptrdiff_t r = 0; r < rank; r += 2, row += ExpandWords::stride(width)) {
        const float low = to_float(h[m * h_stride + r]), high = r + 1 < rank ? to_float(h[m * h_stride + r + 1]) : 0.0f;
        Vec<uint32_t, 16> of_even, of_odd;
        std::memcpy(&of_even, row, sizeof(of_even));
        std::memcpy(&of_odd, row + 16, sizeof(of_odd));
        even += bit_cast<Vec<float, 16>>(of_even << 16) * low;
        even += bit_cast<Vec<float, 16>>(of_even & 0xffff0000u) * high;
        odd += bit_cast<Vec<float, 16>>(of_odd << 16) * low;
        odd += bit_cast<Vec<float, 16>>(of_odd & 0xffff0000u) * high;
      }
      add(m, n, even, odd);
    }
  }

 private:
  FFALORA_INLINE void add_32(bf16* to, const Vec<float, 16>& even_sum, const Vec<float, 16>& odd_sum) const {
    Vec<uint32_t, 16> old;
    std::memcpy(&old, to, sizeof(old));
    const Vec<float, 16> even = bit_cast<Vec<float, 16>>(old << 16) + even_sum * scale;
    const Vec<float, 16> odd = bit_cast<Vec<float, 16>>(old & 0xffff0000u) + odd_sum * scale;
    const auto rounded = rounded_high<16>(even) >> 16 | (rounded_high<16>(odd) & 0xffff0000u);
    std::memcpy(to, &rounded, sizeof(rounded));
  }
};

struct ExpandDot {
  template <int>
  FFALORA_INLINE static void run(const ExpandDotChunk* chunk) {
    const ExpandDotChunk& c = *chunk;
    for (ptrdiff_t m = 0; m < c.tokens;) {
      bool plain = m + 4 <= c.tokens;
      for (int i = 0; i < 4; ++i) plain = plain && !c.needs_float(m + i);
      if (plain) {
        rows<4>(c, m);
        m += 4;
        continue;
      }
      c.needs_float(m) ? c.add_in_float(m) : rows<1>(c, m);
      ++m;
    }
  }

 private:
  static constexpr int kGroup = 32;  // columns of two vectors

  template <int ROWS>
  FFALORA_INLINE static void rows(const ExpandDotChunk& c, ptrdiff_t m) {
    const bf16* next = c.y + (m + ROWS) * c.y_stride;
    ptrdiff_t n = 0;
    for (; n + 2 * kGroup <= c.width; n += 2 * kGroup) {
      for (int i = 0; i < ROWS; ++i)
        for (int g = 0; g < 2; ++g) __builtin_prefetch(next + i * c.y_stride + n + g * kGroup, 1);
      tile<ROWS, 2>(c, m, n);
    }
    for (; n < c.width; n += kGroup) tile<ROWS, 1>(c, m, n);
  }

  template <int ROWS, int GROUPS>
  FFALORA_INLINE static void tile(const ExpandDotChunk& c, ptrdiff_t m, ptrdiff_t n) {
    const bf16* h = c.h + m * c.h_stride;
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
      add<ROWS, GROUPS>(words, pairs, sum);
    }
    if (r < c.rank) {
      uint32_t pairs[ROWS];
      for (int i = 0; i < ROWS; ++i) pairs[i] = h[i * c.h_stride + r].bits;
      add<ROWS, GROUPS>(words, pairs, sum);
    }
    FFALORA_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      FFALORA_UNROLL
      for (int g = 0; g < GROUPS; ++g) c.add(m + i, n + g * kGroup, sum[i][2 * g], sum[i][2 * g + 1]);
    }
  }

  template <int ROWS, int GROUPS>
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
      for (int v = 0; v < 2 * GROUPS; ++v) add_dot(sum[i][v], factors[v], pair);
    }
  }
};

}  // namespace ffalora

#endif
