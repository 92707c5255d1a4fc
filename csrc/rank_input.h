// backward's dh = scale · dy b with ranks in the lanes. Include contract.h first.
#pragma once

#include <type_traits>

#include "rank_words.h"

namespace ffalora {

constexpr ptrdiff_t kBlockColumns = 512;  // at most this many columns of dy and b in a chunk

// For a run of tokens of one client and a range of wide columns: dh[m] = scale Σ_n wide[m, n] b[n].
template <class T>
struct InputChunk {
  const T* wide;
  ptrdiff_t wide_stride, width;
  const uint32_t* words;  // FactorWords of the client's b
  ptrdiff_t column;       // of b that the first column of wide meets
  ptrdiff_t block_words;  // from one block of ranks to the next
  ptrdiff_t rank, tokens;
  float* sums;       // of the columns before, [tokens, rank blocks, L]; unused when this chunk is first and last
  bool first, last;  // of the columns
  float scale;
  T* dh;
  ptrdiff_t dh_stride;
};

template <class T, class Word>
struct RankInputGradient {
  template <int L>
  FFALORA_INLINE static void run(const InputChunk<T>* chunk) {
    const InputChunk<T>& c = *chunk;
    constexpr int kMost = L == 16 ? 8 : 4;
    ptrdiff_t m = 0;
    for (; m + kMost <= c.tokens; m += kMost) rows<L, kMost>(c, m);
    if (m + kMost / 2 <= c.tokens) {
      rows<L, kMost / 2>(c, m);
      m += kMost / 2;
    }
    for (; m < c.tokens; ++m) rows<L, 1>(c, m);
  }

 private:
  using Number = typename Word::Number;

  template <int L, int ROWS>
  FFALORA_INLINE static void rows(const InputChunk<T>& c, ptrdiff_t m) {
    const T* wide = c.wide + m * c.wide_stride;
    if constexpr (std::is_same<T, Number>::value) {
      ranks<L, ROWS>(c, wide, c.wide_stride, m);
    } else {
      alignas(64) Number converted[ROWS * kBlockColumns];
      for (int i = 0; i < ROWS; ++i)
        for (ptrdiff_t n = 0; n < c.width; ++n)
          converted[i * kBlockColumns + n] = to_float(wide[i * c.wide_stride + n]);
      ranks<L, ROWS>(c, converted, kBlockColumns, m);
    }
  }

  template <int L, int ROWS>
  FFALORA_INLINE static void ranks(const InputChunk<T>& c, const Number* wide, ptrdiff_t stride, ptrdiff_t m) {
    const uint32_t* words = c.words;
    for (ptrdiff_t r = 0; r < c.rank; r += L, words += c.block_words)
      copied_twice<L>(c.rank, r) ? block<L, 2, ROWS>(c, wide, stride, words, m, r)
                                 : block<L, 1, ROWS>(c, wide, stride, words, m, r);
  }

  template <int L, int COPIES, int ROWS>
  FFALORA_INLINE static void block(const InputChunk<T>& c, const Number* wide, ptrdiff_t stride, const uint32_t* words,
                                   ptrdiff_t m, ptrdiff_t r) {
    constexpr int kStep = 2 * COPIES * Word::kRows;  // columns of two vectors of words
    Vec<float, L> sum[ROWS][2] = {};
    const ptrdiff_t whole = c.width / kStep * kStep;
    words += c.column / (kStep / 2) * L;
    for (ptrdiff_t n = 0; n < whole; n += kStep, words += 2 * L) add<L, COPIES, ROWS>(wide + n, stride, words, sum);
    if (whole < c.width) {
      alignas(64) Number edge[ROWS * kStep] = {};
      for (int i = 0; i < ROWS; ++i)
        std::memcpy(edge + i * kStep, wide + i * stride + whole, (c.width - whole) * sizeof(Number));
      add<L, COPIES, ROWS>(edge, kStep, words, sum);
    }
    float* sums = c.sums + (m * rank_blocks(c.rank, L) + r / L) * L;
    FFALORA_UNROLL
    for (int i = 0; i < ROWS; ++i, sums += rank_blocks(c.rank, L) * L) {
      Vec<float, L> lanes = sum[i][0] + sum[i][1];
      if (!c.first) lanes += load<L>(sums);
      c.last ? put<L, COPIES>(c, lanes, m + i, r) : store<L>(sums, lanes);
    }
  }

  template <int L, int COPIES, int ROWS>
  FFALORA_INLINE static void add(const Number* wide, ptrdiff_t stride, const uint32_t* words,
                                 Vec<float, L> (&sum)[ROWS][2]) {
    FFALORA_UNROLL
    for (int half = 0; half < 2; ++half) {
      Words<L> factors = load_block<L>(words + half * L);
      keep(factors);
      const Number* at = wide + half * COPIES * Word::kRows;
      FFALORA_UNROLL
      for (int i = 0; i < ROWS; ++i) Word::template add<L>(sum[i][half], spread<COPIES, L>(at + i * stride), factors);
    }
  }

  template <int L, int COPIES>
  FFALORA_INLINE static void put(const InputChunk<T>& c, const Vec<float, L>& v, ptrdiff_t m, ptrdiff_t r) {
    constexpr int kRow = L / COPIES;
    alignas(64) float lanes[L];
    store<L>(lanes, copies_apart<COPIES, L>(v * c.scale));
    Vec<float, kRow> row = load<kRow>(lanes);
    if (COPIES == 2) row += load<kRow>(lanes + L / 2);
    T* to = c.dh + m * c.dh_stride + r;
    if (c.rank - r >= kRow) return store<kRow>(to, row);
    alignas(64) T short_row[kRow];
    store<kRow>(short_row, row);
    for (ptrdiff_t j = 0; j < c.rank - r; ++j) to[j] = short_row[j];
  }
};

}  // namespace ffalora
