// backward's two products by the bfloat16 dot instruction, with ranks in the lanes, so that no sum is turned around.
//
// Ranks come in blocks of one vector of 32-bit words. A word is two bfloat16 numbers of neighbouring rows (of h or of
// b): one step of the instruction. A block of more than 8 ranks has one lane a rank (COPIES = 1); a last block of up
// to 8 has two (COPIES = 2), which take different columns. Include contract.h first.
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

// Even lanes, then odd ones.
FFALORA_INLINE Vec<float, 16> copies_apart(const Vec<float, 16>& v) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shuffle(v, Vec<int32_t, 16>{0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15});
#endif
}

// One word in all lanes, or two words in turn.
template <int COPIES>
FFALORA_INLINE Vec<uint16_t, 32> spread(const void* at) {
  if constexpr (COPIES == 1) {
    uint32_t word;
    std::memcpy(&word, at, sizeof(word));
    return bit_cast<Vec<uint16_t, 32>>(Vec<uint32_t, 16>{} + word);
  } else {
    uint64_t words;
    std::memcpy(&words, at, sizeof(words));
    return bit_cast<Vec<uint16_t, 32>>(Vec<uint64_t, 8>{} + words);
  }
}

// The chunk's target is rank-contiguous, and its narrow holds NarrowWords.
struct RankGradient {
  template <int L>
  FFALORA_INLINE static void run(const GradientChunk<bf16>* chunk) {
    const GradientChunk<bf16>& c = *chunk;
    alignas(64) uint32_t packed[kChunkTokens / 2 * kPanel];
    Vec<double, kLanes> square{};
    Vec<double, kLanes / 2> short_square{};
    float* partial = c.partial;
    for (ptrdiff_t n = 0; n < c.width; n += kPanel) {
      const ptrdiff_t columns = c.width - n < kPanel ? c.width - n : kPanel;
      DotProducts::pack<L>(c, n, columns, packed);
      if (c.last) prefetch_target(c, n, columns);
      for (ptrdiff_t r = 0; r < c.rank; r += kLanes) {
        if (copied_twice(c.rank, r)) {
          columns_of<2>(c, packed, n, columns, r, partial, square, short_square);
        } else {
          columns_of<1>(c, packed, n, columns, r, partial, square, short_square);
          columns_of<1>(c, packed + kLanes, n + kLanes, columns - kLanes, r, partial, square, short_square);
        }
      }
    }
    if (!c.last) return;
    double total = 0;
    for (int i = 0; i < kLanes; ++i) total += square[i];
    for (int i = 0; i < kLanes / 2; ++i) total += short_square[i];
    *c.square = total;
  }

 private:
  static constexpr int kPanel = 32;

  // 16 · COPIES columns from n on, of which `columns` are real, for the block of ranks at r.
  template <int COPIES>
  FFALORA_INLINE static void columns_of(const GradientChunk<bf16>& c, const uint32_t* packed, ptrdiff_t n,
                                        ptrdiff_t columns, ptrdiff_t r, float*& partial, Vec<double, kLanes>& square,
                                        Vec<double, kLanes / 2>& short_square) {
    const auto* words = reinterpret_cast<const uint32_t*>(c.narrow) + r;
    const ptrdiff_t stride = rank_blocks(c.rank) * kLanes;
    Vec<float, kLanes> sum[kLanes] = {};
    for (ptrdiff_t m = 0; m < c.tokens; m += 2, words += stride, packed += kPanel) {
      auto pair = load_words(words);
      keep(pair);
      for (int i = 0; i < kLanes; ++i) add_dot(sum[i], spread<COPIES>(packed + i * COPIES), pair);
    }
    if (!(c.first && c.last)) {
      for (auto& v : sum) {
        if (!c.first) v += load<kLanes>(partial);
        if (!c.last) store<kLanes>(partial, v);
        partial += kLanes;
      }
    }
    if (c.last && columns > 0)
      finish<COPIES>(c, sum, n, columns < kLanes * COPIES ? columns : kLanes * COPIES, r, square, short_square);
  }

  template <int COPIES>
  FFALORA_INLINE static void finish(const GradientChunk<bf16>& c, Vec<float, kLanes> (&sum)[kLanes], ptrdiff_t n,
                                    ptrdiff_t columns, ptrdiff_t r, Vec<double, kLanes>& square,
                                    Vec<double, kLanes / 2>& short_square) {
    float* target = c.target + n * c.rank + r;
    if (COPIES == 2)
      for (auto& v : sum) v = copies_apart(v);
    if (c.rank == kLanes / COPIES && columns == kLanes * COPIES) {
      Vec<double, kLanes> total[2] = {square};
      for (int i = 0; i < kLanes; ++i) emit<kLanes>(c, sum[i], target + i * kLanes, kLanes, total[i % 2]);
      square = total[0] + total[1];
      return;
    }
    // Rows of `ranks` numbers: where they are all of g they are joined, each row over the padding of the one before.
    constexpr int kRow = kLanes / COPIES;
    alignas(64) float rows[kLanes * kLanes];
    for (int i = 0; i < kLanes; ++i) store<kLanes>(rows + i * kLanes, sum[i]);
    if (c.rank > kRow || r > 0) {
      for (ptrdiff_t j = 0; j < columns; ++j)
        if constexpr (COPIES == 1) {
          emit<kRow>(c, load<kRow>(rows + j * kRow), target + j * c.rank, c.rank - r, square);
        } else {
          emit<kRow>(c, load<kRow>(rows + j * kRow), target + j * c.rank, c.rank - r, short_square);
        }
      return;
    }
    alignas(64) float joined[kLanes * kLanes + kLanes];
    for (ptrdiff_t j = 0; j < columns; ++j) store<kRow>(joined + j * c.rank, load<kRow>(rows + j * kRow));
    for (ptrdiff_t at = 0; at < columns * c.rank; at += kLanes)
      emit<kLanes>(c, load<kLanes>(joined + at), target + at, columns * c.rank - at, square);
  }
};

// dh[m] = scale Σ_n wide[m, n] b[n] for a run of tokens of one client.
struct RankInputChunk {
  const bf16* wide;
  ptrdiff_t wide_stride, width;
  const uint32_t* words;  // FactorWords of the client's b
  ptrdiff_t rank, tokens;
  float scale;
  bf16* dh;
  ptrdiff_t dh_stride;
};

struct RankInputGradient {
  template <int>
  FFALORA_INLINE static void run(const RankInputChunk* chunk) {
    const RankInputChunk& c = *chunk;
    const uint32_t* words = c.words;
    for (ptrdiff_t r = 0; r < c.rank; r += kLanes, words += FactorWords::block(c.width))
      copied_twice(c.rank, r) ? block<2>(c, r, words) : block<1>(c, r, words);
  }

 private:
  template <int COPIES>
  FFALORA_INLINE static void block(const RankInputChunk& c, ptrdiff_t r, const uint32_t* words) {
    ptrdiff_t m = 0;
    for (; m + 8 <= c.tokens; m += 8) rows<COPIES, 8>(c, m, r, words);
    for (; m < c.tokens; ++m) rows<COPIES, 1>(c, m, r, words);
  }

  template <int COPIES, int ROWS>
  FFALORA_INLINE static void rows(const RankInputChunk& c, ptrdiff_t m, ptrdiff_t r, const uint32_t* words) {
    constexpr int kStep = 4 * COPIES, kLine = 32;  // columns of two vectors of words, and of a cache line
    const bf16* wide = c.wide + m * c.wide_stride;
    Vec<float, kLanes> sum[ROWS][2] = {};
    const ptrdiff_t whole = c.width / kStep * kStep;
    for (ptrdiff_t line = 0; line < whole; line += kLine) {
      for (int i = 0; i < ROWS; ++i) __builtin_prefetch(wide + (i + 8) * c.wide_stride + line);
      const ptrdiff_t end = whole - line < kLine ? whole : line + kLine;
      for (ptrdiff_t n = line; n < end; n += kStep, words += 2 * kLanes)
        add<COPIES, ROWS>(wide + n, c.wide_stride, words, sum);
    }
    if (whole < c.width) {
      alignas(64) bf16 edge[ROWS * kStep] = {};
      for (int i = 0; i < ROWS; ++i)
        std::memcpy(edge + i * kStep, wide + i * c.wide_stride + whole, (c.width - whole) * sizeof(bf16));
      add<COPIES, ROWS>(edge, kStep, words, sum);
    }
    for (int i = 0; i < ROWS; ++i) put<COPIES>(c, (sum[i][0] + sum[i][1]) * c.scale, m + i, r);
  }

  template <int COPIES, int ROWS>
  FFALORA_INLINE static void add(const bf16* wide, ptrdiff_t stride, const uint32_t* words,
                                 Vec<float, kLanes> (&sum)[ROWS][2]) {
    for (int half = 0; half < 2; ++half) {
      auto factors = load_words(words + half * kLanes);
      keep(factors);
      for (int i = 0; i < ROWS; ++i)
        add_dot(sum[i][half], spread<COPIES>(wide + i * stride + half * 2 * COPIES), factors);
    }
  }

  template <int COPIES>
  FFALORA_INLINE static void put(const RankInputChunk& c, const Vec<float, kLanes>& v, ptrdiff_t m, ptrdiff_t r) {
    constexpr int kRow = kLanes / COPIES;
    alignas(64) float lanes[kLanes];
    store<kLanes>(lanes, COPIES == 2 ? copies_apart(v) : v);
    Vec<float, kRow> row = load<kRow>(lanes);
    if (COPIES == 2) row += load<kRow>(lanes + kLanes / 2);
    bf16* to = c.dh + m * c.dh_stride + r;
    if (c.rank - r >= kRow) return store<kRow>(to, row);
    alignas(64) bf16 short_row[kRow];
    store<kRow>(short_row, row);
    for (ptrdiff_t j = 0; j < c.rank - r; ++j) to[j] = short_row[j];
  }
};

}  // namespace ffalora

#endif
