// backward's two products by the bfloat16 dot instruction, with ranks in the lanes, so that no sum is turned around.
// Include contract.h first.
#pragma once

#include "rank_words.h"

#ifdef FFALORA_BF16_DOT

namespace ffalora {

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
      if (c.last) prefetch_target(c, n + kPanelsAhead * kPanel, columns);
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
  static constexpr int kPanelsAhead = 2;  // between the one in use and the one whose target is asked of the memory

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
  static constexpr int kRowsAhead = 16;  // between the rows in use and those asked of the memory

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
      for (int i = 0; i < ROWS; ++i) __builtin_prefetch(wide + (i + kRowsAhead) * c.wide_stride + line);
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
