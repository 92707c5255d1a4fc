// Operands with ranks in the lanes: h and b in blocks of up to L ranks, as vectors of L words of 32 bits.
//
// A word is a float32 number, or two bfloat16 numbers of neighbouring rows (of h or of b): one step of the dot
// instruction. A block of more than L/2 ranks has one lane a rank (COPIES = 1); a last block of up to L/2 has two
// (COPIES = 2), which take different columns.
//
// Sums stay in registers for a tile: BLOCKS blocks of ranks by as many vectors of words of dy as there is room for.
// Include contract.h first.
#pragma once

#include <type_traits>

#include "bf16_dot.h"

namespace ffalora {

// L words. As halves: GCC 12 fills a vector of words lane by lane where it is not cast to another type.
template <int L>
using Words = Vec<uint16_t, 2 * L>;

struct FloatWord {
  using Number = float;
  static constexpr int kRows = 1;

  template <class From>
  FFALORA_INLINE static uint32_t of(const From* const* rows, ptrdiff_t j) {
    return bit_cast<uint32_t>(to_float(rows[0][j]));
  }
  template <int L>
  FFALORA_INLINE static void add(Vec<float, L>& sum, const Words<L>& x, const Words<L>& y) {
    sum += bit_cast<Vec<float, L>>(x) * bit_cast<Vec<float, L>>(y);
  }
};

#ifdef FFALORA_BF16_DOT
struct DotWord {
  using Number = bf16;
  static constexpr int kRows = 2;

  template <class From>
  FFALORA_INLINE static uint32_t of(const From* const* rows, ptrdiff_t j) {
    return bits_of(rows[0][j]) | bits_of(rows[1][j]) << 16;
  }
  template <int L>
  FFALORA_INLINE static void add(Vec<float, L>& sum, const Words<L>& x, const Words<L>& y) {
    add_dot(sum, x, y);
  }
};
#endif

// Calls the leaf for the widest vectors that Word can be had in.
template <class Word, class Leaf, class... Args>
void dispatch_words(Args... args) {
#ifdef FFALORA_BF16_DOT
  if constexpr (Word::kRows == 2) return run_avx512<Leaf>(args...);
#endif
  if constexpr (Word::kRows == 1) dispatch<Leaf>(args...);
}

inline ptrdiff_t rank_blocks(ptrdiff_t rank, ptrdiff_t lanes) { return (rank + lanes - 1) / lanes; }

template <int L>
constexpr int kSums = L == 16 ? 16 : 8;  // vectors of sums in a tile
template <int L>
constexpr int kBlocks = L == 16 ? 1 : 2;  // most blocks of ranks in a tile; they share the words of dy

template <int L>
FFALORA_INLINE bool copied_twice(ptrdiff_t rank, ptrdiff_t r) {
  return rank - r <= L / 2;
}

// Calls tile(COPIES, BLOCKS), as integral constants, for the ranks from r on; returns how many it takes.
template <int L, class Tile>
FFALORA_INLINE ptrdiff_t with_tile(ptrdiff_t rank, ptrdiff_t r, const Tile& tile) {
  using One = std::integral_constant<int, 1>;
  if (copied_twice<L>(rank, r)) {
    tile(std::integral_constant<int, 2>{}, One{});
  } else if (kBlocks<L> > 1 && !copied_twice<L>(rank, r + (kBlocks<L> - 1) * L)) {
    tile(One{}, std::integral_constant<int, kBlocks<L>>{});
    return kBlocks<L> * L;
  } else {
    tile(One{}, One{});
  }
  return L;
}

template <int L>
FFALORA_INLINE Words<L> load_block(const uint32_t* words) {
  Words<L> v;
  std::memcpy(&v, words, sizeof(v));
  return v;
}

// One word in all lanes, or two words in turn.
template <int COPIES, int L>
FFALORA_INLINE Words<L> spread(const void* at) {
  if constexpr (COPIES == 1) {
    uint32_t word;
    std::memcpy(&word, at, sizeof(word));
    return bit_cast<Words<L>>(Vec<uint32_t, L>{} + word);
  } else {
    uint64_t words;
    std::memcpy(&words, at, sizeof(words));
    return bit_cast<Words<L>>(Vec<uint64_t, L / 2>{} + words);
  }
}

// Word i of a row in all lanes, or words 2i and 2i + 1 in turn; the row has a multiple of L words. The baseline, which
// has no load to all lanes, loads four words at once.
template <int COPIES, int L>
FFALORA_INLINE Words<L> spread_of(const uint32_t* row, int i) {
#if !defined(__clang__)
  if constexpr (L == 4) {
    const int first = i * COPIES % L;
    const auto four = bit_cast<Vec<uint32_t, 4>>(load_block<L>(row + i * COPIES / L * L));
    const Vec<int32_t, 4> from{first, first + COPIES - 1, first, first + COPIES - 1};
    return bit_cast<Words<L>>(__builtin_shuffle(four, from));
  }
#endif
  return spread<COPIES, L>(row + i * COPIES);
}

// Sums of two copies: those of the first, then those of the second.
template <int COPIES, int L>
FFALORA_INLINE Vec<float, L> copies_apart(const Vec<float, L>& v) {
  if constexpr (COPIES == 1)
    return v;
  else
    return even_then_odd<L>(v);
}

// words[COPIES·j + p] = word p of rank j; zeros stand for a row that is null and for ranks beyond `ranks`.
template <class Word, int L, int COPIES, class From>
FFALORA_INLINE void fill_words(const From* const (&rows)[COPIES * Word::kRows], ptrdiff_t ranks, uint32_t* words) {
  static const From kZeros[L] = {};
  const From* from[COPIES * Word::kRows];
  for (int p = 0; p < COPIES * Word::kRows; ++p) from[p] = rows[p] == nullptr ? kZeros : rows[p];
  constexpr int kWhole = L / COPIES;
  if (ranks < kWhole) std::memset(words, 0, L * sizeof(uint32_t));
  const auto fill = [&](ptrdiff_t count) __attribute__((always_inline)) {
    FFALORA_INDEPENDENT
    for (ptrdiff_t j = 0; j < count; ++j)
      for (int p = 0; p < COPIES; ++p) words[COPIES * j + p] = Word::of(from + p * Word::kRows, j);
  };
  ranks < kWhole ? fill(ranks) : fill(kWhole);
}

// The tokens of h: words [⌈tokens/kRows⌉, rank blocks, L].
template <class Word>
struct NarrowWords {
  template <int L, class From>
  FFALORA_INLINE static void run(const From* h, ptrdiff_t stride, ptrdiff_t rank, ptrdiff_t tokens, uint32_t* words) {
    for (ptrdiff_t m = 0; m < tokens; m += Word::kRows, h += Word::kRows * stride)
      for (ptrdiff_t r = 0; r < rank; r += L, words += L)
        copied_twice<L>(rank, r) ? fill<L, 2>(h + r, stride, rank - r, tokens - m, words)
                                 : fill<L, 1>(h + r, stride, rank - r, tokens - m, words);
  }

 private:
  template <int L, int COPIES, class From>
  FFALORA_INLINE static void fill(const From* h, ptrdiff_t stride, ptrdiff_t ranks, ptrdiff_t tokens, uint32_t* words) {
    const From* rows[COPIES * Word::kRows];
    for (int i = 0; i < Word::kRows; ++i)
      for (int p = 0; p < COPIES; ++p) rows[p * Word::kRows + i] = i < tokens ? h + i * stride : nullptr;
    fill_words<Word, L, COPIES>(rows, ranks, words);
  }
};

// The columns of b: words [rank blocks, ⌈columns/8⌉·8/kRows, L], of which a block with two copies fills half.
template <class Word>
struct FactorWords {
  static ptrdiff_t block(ptrdiff_t columns, ptrdiff_t lanes) { return padded_to(columns, 8) / Word::kRows * lanes; }

  template <int L, class From>
  FFALORA_INLINE static void run(const From* b, ptrdiff_t columns, ptrdiff_t rank, uint32_t* words) {
    for (ptrdiff_t r = 0; r < rank; r += L, words += block(columns, L))
      copied_twice<L>(rank, r) ? turn<L, 2>(b + r, columns, rank, rank - r, words)
                               : turn<L, 1>(b + r, columns, rank, rank - r, words);
  }

 private:
  template <int L, int COPIES, class From>
  FFALORA_INLINE static void turn(const From* b, ptrdiff_t columns, ptrdiff_t rank, ptrdiff_t ranks, uint32_t* words) {
    constexpr int kStep = COPIES * Word::kRows;
    for (ptrdiff_t n = 0; n < padded_to(columns, 8); n += kStep, words += L) {
      const From* rows[kStep];
      for (int p = 0; p < kStep; ++p) rows[p] = n + p < columns ? b + (n + p) * rank : nullptr;
      fill_words<Word, L, COPIES>(rows, ranks, words);
    }
  }
};

}  // namespace ffalora
