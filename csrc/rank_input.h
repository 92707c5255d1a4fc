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
      for (int i = 0; i < ROWS; ++i) {
        const T* from = wide + i * c.wide_stride;
        Number* to = converted + i * kBlockColumns;
        FFALORA_INDEPENDENT
        for (ptrdiff_t n = 0; n < c.width; ++n) to[n] = to_float(from[n]);
      }
      ranks<L, ROWS>(c, converted, kBlockColumns, m);
    }
  }

  template <int L, int ROWS>
  FFALORA_INLINE static void ranks(const InputChunk<T>& c, const Number* wide, ptrdiff_t stride, ptrdiff_t m) {
    for (ptrdiff_t r = 0; r < c.rank;)
      r += with_tile<L>(c.rank, r, [&](auto copies, auto blocks) __attribute__((always_inline)) {
        tile<L, copies, blocks, ROWS>(c, wide, stride, m, r);
      });
  }

  // Vectors of sums for a row: of each block of ranks, in turn over kParts parts of the columns.
  template <int L, int COPIES, int BLOCKS, int ROWS>
  FFALORA_INLINE static void tile(const InputChunk<T>& c, const Number* wide, ptrdiff_t stride, ptrdiff_t m,
                                  ptrdiff_t r) {
    constexpr int kParts = 2 / BLOCKS, kWord = COPIES * Word::kRows, kStep = kParts * kWord;
    Vec<float, L> sum[ROWS][kParts][BLOCKS] = {};
    const ptrdiff_t whole = c.width / kStep * kStep;
    const uint32_t* words = c.words + r / L * c.block_words + c.column / kWord * L;
    const auto add = [&](const Number* at, ptrdiff_t row) __attribute__((always_inline)) {
      FFALORA_UNROLL
      for (int p = 0; p < kParts; ++p, at += kWord, words += L) {
        Words<L> factors[BLOCKS];
        FFALORA_UNROLL
        for (int k = 0; k < BLOCKS; ++k) {
          factors[k] = load_block<L>(words + k * c.block_words);
          keep(factors[k]);
        }
        FFALORA_UNROLL
        for (int i = 0; i < ROWS; ++i) {
          const Words<L> word = spread<COPIES, L>(at + i * row);
          FFALORA_UNROLL
          for (int k = 0; k < BLOCKS; ++k) Word::template add<L>(sum[i][p][k], word, factors[k]);
        }
      }
    };
    for (ptrdiff_t n = 0; n < whole; n += kStep) add(wide + n, stride);
    if (whole < c.width) {
      alignas(64) Number edge[ROWS * kStep] = {};
      for (int i = 0; i < ROWS; ++i)
        std::memcpy(edge + i * kStep, wide + i * stride + whole, (c.width - whole) * sizeof(Number));
      add(edge, kStep);
    }
    FFALORA_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      float* sums = c.sums + (m + i) * rank_blocks(c.rank, L) * L + r;
      FFALORA_UNROLL
      for (int k = 0; k < BLOCKS; ++k, sums += L) {
        Vec<float, L> lanes = sum[i][0][k];
        if (kParts == 2) lanes += sum[i][kParts - 1][k];
        if (!c.first) lanes += load<L>(sums);
        c.last ? put<L, COPIES>(c, lanes, m + i, r + k * L) : store<L>(sums, lanes);
      }
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
