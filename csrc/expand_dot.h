// expand_'s product by the bfloat16 dot instruction: columns in the lanes, ranks in pairs. Include contract.h first.
#pragma once

#include "bf16_dot.h"

#ifdef FFALORA_BF16_DOT

namespace ffalora {

// b in words of two neighbouring ranks, [⌈rank/2⌉, padded columns]; of 32 columns the even ones come first, as they do
// when 32 numbers of y are split into the low and the high halves of 16 words.
struct ExpandWords {
  static ptrdiff_t stride(ptrdiff_t columns) { return padded_to(columns, 32) + 16; }  // not a power of two
  static ptrdiff_t size(ptrdiff_t columns, ptrdiff_t rank) { return (rank + 1) / 2 * stride(columns); }

  template <int, class From>
  FFALORA_INLINE static void run(const From* b, ptrdiff_t columns, ptrdiff_t rank, uint32_t* words) {
    for (ptrdiff_t n = 0; n < columns; n += 32)
      for (ptrdiff_t r = 0; r < rank; r += 2) {
        uint32_t* to = words + r / 2 * stride(columns) + n;
        for (ptrdiff_t j = 0; j < 32; ++j) {
          const ptrdiff_t column = n + 2 * (j % 16) + j / 16;
          const From* row = b + column * rank + r;
          to[j] = column < columns ? bits_of(row[0]) | (r + 1 < rank ? bits_of(row[1]) << 16 : 0) : 0;
        }
      }
  }
};

// For a range of tokens of one client: y[m, n] += scale Σ_r h[m, r] b[n, r].
struct ExpandDotChunk {
  bf16* y;
  ptrdiff_t y_stride, width;
  const bf16* h;
  ptrdiff_t h_stride, rank, tokens;
  const uint32_t* words;
  float scale;
};

struct ExpandDot {
  template <int>
  FFALORA_INLINE static void run(const ExpandDotChunk* chunk) {
    ptrdiff_t m = 0;
    for (; m + 4 <= chunk->tokens; m += 4) rows<4>(*chunk, m);
    for (; m < chunk->tokens; ++m) rows<1>(*chunk, m);
  }

 private:
  static constexpr int kGroup = 32;  // columns of two vectors

  template <int ROWS>
  FFALORA_INLINE static void rows(const ExpandDotChunk& c, ptrdiff_t m) {
    bf16* y = c.y + m * c.y_stride;
    const bf16* h = c.h + m * c.h_stride;
    ptrdiff_t n = 0;
    for (; n + 2 * kGroup <= c.width; n += 2 * kGroup) {
      for (int i = 0; i < ROWS; ++i)
        for (int g = 0; g < 2; ++g) __builtin_prefetch(y + (i + ROWS) * c.y_stride + n + g * kGroup, 1);
      tile<ROWS, 2>(c, y + n, c.y_stride, h, n);
    }
    for (; n + kGroup <= c.width; n += kGroup) tile<ROWS, 1>(c, y + n, c.y_stride, h, n);
    if (n == c.width) return;
    alignas(64) bf16 edge[ROWS * kGroup] = {};
    const size_t bytes = (c.width - n) * sizeof(bf16);
    for (int i = 0; i < ROWS; ++i) std::memcpy(edge + i * kGroup, y + i * c.y_stride + n, bytes);
    tile<ROWS, 1>(c, edge, kGroup, h, n);
    for (int i = 0; i < ROWS; ++i) std::memcpy(y + i * c.y_stride + n, edge + i * kGroup, bytes);
  }

  template <int ROWS, int GROUPS>
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
