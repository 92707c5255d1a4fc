// Operands of rank_lanes.h: h and b in blocks of up to 16 ranks, as vectors of 32-bit words.
//
// A word is two bfloat16 numbers of neighbouring rows (of h or of b): one step of the dot instruction. A block of more
// than 8 ranks has one lane a rank (COPIES = 1); a last block of up to 8 has two (COPIES = 2), which take different
// columns. Include contract.h first.
#pragma once

#include "bf16_dot.h"

#ifdef FFALORA_BF16_DOT

namespace ffalora {

constexpr int kLanes = 16;

inline ptrdiff_t rank_blocks(ptrdiff_t rank) { return (rank + kLanes - 1) / kLanes; }
inline bool copied_twice(ptrdiff_t rank, ptrdiff_t r) { return rank - r <= kLanes / 2; }

// words[COPIES·j + p] = (row 2p, row 2p+1) at rank j; zeros stand for a row that is null and for ranks beyond `ranks`.
template <int COPIES, class From>
FFALORA_INLINE void fill_words(const From* const (&rows)[2 * COPIES], ptrdiff_t ranks, uint32_t* words) {
  static const From kZeros[kLanes] = {};
  const From* from[2 * COPIES];
  for (int p = 0; p < 2 * COPIES; ++p) from[p] = rows[p] == nullptr ? kZeros : rows[p];
  constexpr int kWhole = kLanes / COPIES;
  if (ranks < kWhole) std::memset(words, 0, kLanes * sizeof(uint32_t));
  const auto fill = [&](ptrdiff_t count) __attribute__((always_inline)) {
    FFALORA_INDEPENDENT
    for (ptrdiff_t j = 0; j < count; ++j)
      for (int p = 0; p < COPIES; ++p)
        words[COPIES * j + p] = bits_of(from[2 * p][j]) | bits_of(from[2 * p + 1][j]) << 16;
  };
  ranks < kWhole ? fill(ranks) : fill(kWhole);
}

// The tokens of h in pairs: words [⌈tokens/2⌉, rank blocks, kLanes].
struct NarrowWords {
  template <int>
  FFALORA_INLINE static void run(const bf16* h, ptrdiff_t stride, ptrdiff_t rank, ptrdiff_t tokens, uint32_t* words) {
    for (ptrdiff_t m = 0; m < tokens; m += 2) {
      const bf16 *even = h + m * stride, *odd = m + 1 < tokens ? even + stride : nullptr;
      for (ptrdiff_t r = 0; r < rank; r += kLanes, words += kLanes) {
        const bf16 *first = even + r, *second = odd == nullptr ? nullptr : odd + r;
        if (copied_twice(rank, r)) {
          fill_words<2, bf16>({first, second, first, second}, rank - r, words);
        } else {
          fill_words<1, bf16>({first, second}, rank - r, words);
        }
      }
    }
  }
};

// The columns of b in pairs: words [rank blocks, ⌈columns/8⌉·4, kLanes], of which a block with two copies fills half.
struct FactorWords {
  static ptrdiff_t block(ptrdiff_t columns) { return padded_to(columns, 8) / 2 * kLanes; }

  template <int, class From>
  FFALORA_INLINE static void run(const From* b, ptrdiff_t columns, ptrdiff_t rank, uint32_t* words) {
    for (ptrdiff_t r = 0; r < rank; r += kLanes, words += block(columns))
      copied_twice(rank, r) ? turn<2>(b + r, columns, rank, rank - r, words)
                            : turn<1>(b + r, columns, rank, rank - r, words);
  }

 private:
  template <int COPIES, class From>
  FFALORA_INLINE static void turn(const From* b, ptrdiff_t columns, ptrdiff_t rank, ptrdiff_t ranks, uint32_t* words) {
    for (ptrdiff_t n = 0; n < padded_to(columns, 8); n += 2 * COPIES, words += kLanes) {
      const From* rows[2 * COPIES];
      for (int p = 0; p < 2 * COPIES; ++p) rows[p] = n + p < columns ? b + (n + p) * rank : nullptr;
      fill_words<COPIES, From>(rows, ranks, words);
    }
  }
};

}  // namespace ffalora

#endif
