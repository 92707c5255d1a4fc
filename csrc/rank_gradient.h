// backward's g = scale · dyᵀ h with ranks in the lanes, so that no sum is turned around. Include contract.h first.
#pragma once

#include <type_traits>

#include "rank_words.h"

namespace ffalora {

// As Gradient of tile.h, for a target with rank-contiguous rows [width, rank]; the chunk's narrow holds NarrowWords.
template <class T, class Word>
struct RankGradient {
  template <int L>
  FFALORA_INLINE static void run(const GradientChunk<T>* chunk) {
    const GradientChunk<T>& c = *chunk;
    constexpr int kPanel = 2 * kSums<L>;
    alignas(64) uint32_t packed[kChunkTokens / Word::kRows * kPanel];
    Vec<double, L> square{};
    Vec<double, L / 2> short_square{};
    float* partial = c.partial;
    // With few lanes several tiles read the same lines, and rows whole pages apart share too few sets of the cache for
    // the lines to be still there.
    const bool few_sets = L < 16 && c.wide_stride * sizeof(T) % 4096 == 0;
    for (ptrdiff_t n = 0; n < c.width; n += kPanel) {
      const ptrdiff_t columns = c.width - n < kPanel ? c.width - n : kPanel;
      const void* words = packed;
      ptrdiff_t stride = kPanel;
      if (std::is_same<T, typename Word::Number>::value && Word::kRows == 1 && columns == kPanel && !few_sets) {
        words = c.wide + n;
        stride = c.wide_stride;
      } else {
        pack<L>(c, n, columns, packed);
      }
      if (c.last) prefetch_target(c, n + kPanelsAhead * kPanel, columns);
      for (ptrdiff_t r = 0; r < c.rank;)
        r += with_tile<L>(c.rank, r, [&](auto copies, auto blocks) __attribute__((always_inline)) {
          constexpr int kColumns = kSums<L> / blocks * copies;
          for (ptrdiff_t j = 0; j < columns; j += kColumns)
            tile<L, copies, blocks>(c, static_cast<const uint32_t*>(words) + j, stride, n + j, columns - j, r, partial,
                                    square, short_square);
        });
    }
    if (!c.last) return;
    double total = 0;
    for (int i = 0; i < L; ++i) total += square[i];
    for (int i = 0; i < L / 2; ++i) total += short_square[i];
    *c.square = total;
  }

 private:
  static constexpr int kPanelsAhead = 2;  // between the one in use and the one whose target is asked of the memory

  template <int L>
  FFALORA_INLINE static void pack(const GradientChunk<T>& c, ptrdiff_t n, ptrdiff_t columns, uint32_t* packed) {
#ifdef FFALORA_BF16_DOT
    if constexpr (Word::kRows == 2) return DotProducts::pack<L>(c, n, columns, packed);
#endif
    FloatProducts<T>::template pack<kSums<L>>(c, n, columns, packed);
  }

  // Columns from n on, of which `columns` are real, for the blocks of ranks at r.
  template <int L, int COPIES, int BLOCKS>
  FFALORA_INLINE static void tile(const GradientChunk<T>& c, const uint32_t* wide, ptrdiff_t wide_stride, ptrdiff_t n,
                                  ptrdiff_t columns, ptrdiff_t r, float*& partial, Vec<double, L>& square,
                                  Vec<double, L / 2>& short_square) {
    constexpr int kWide = kSums<L> / BLOCKS;
    const auto* words = reinterpret_cast<const uint32_t*>(c.narrow) + r;
    const ptrdiff_t stride = rank_blocks(c.rank, L) * L;
    Vec<float, L> sum[kWide][BLOCKS] = {};
    for (ptrdiff_t m = 0; m < c.tokens; m += Word::kRows, words += stride, wide += wide_stride) {
      Words<L> factors[BLOCKS];
      FFALORA_UNROLL
      for (int k = 0; k < BLOCKS; ++k) {
        factors[k] = load_block<L>(words + k * L);
        keep(factors[k]);
      }
      FFALORA_UNROLL
      for (int i = 0; i < kWide; ++i) {
        const Words<L> word = spread_of<COPIES, L>(wide, i);
        FFALORA_UNROLL
        for (int k = 0; k < BLOCKS; ++k) Word::template add<L>(sum[i][k], word, factors[k]);
      }
    }
    if (!(c.first && c.last)) {
      FFALORA_UNROLL
      for (int i = 0; i < kSums<L>; ++i, partial += L) {
        Vec<float, L>& v = sum[i / BLOCKS][i % BLOCKS];
        if (!c.first) v += load<L>(partial);
        if (!c.last) store<L>(partial, v);
      }
    }
    constexpr int kColumns = kWide * COPIES;
    if (c.last) finish<L, COPIES, BLOCKS>(c, sum, n, columns < kColumns ? columns : kColumns, r, square, short_square);
  }

  template <int L, int COPIES, int BLOCKS>
  FFALORA_INLINE static void finish(const GradientChunk<T>& c, Vec<float, L> (&sum)[kSums<L> / BLOCKS][BLOCKS],
                                    ptrdiff_t n, ptrdiff_t columns, ptrdiff_t r, Vec<double, L>& square,
                                    Vec<double, L / 2>& short_square) {
    constexpr int kWide = kSums<L> / BLOCKS, kRow = BLOCKS * L / COPIES, kNumbers = kSums<L> * L;
    float* target = c.target + n * c.rank + r;
    if constexpr (COPIES == 2) {
      FFALORA_UNROLL
      for (int i = 0; i < kWide; ++i) sum[i][0] = even_then_odd<L>(sum[i][0]);
    }
    const auto emit_all = [&](ptrdiff_t row) __attribute__((always_inline)) {
      Vec<double, L> total[2] = {square};
      FFALORA_UNROLL
      for (int i = 0; i < kSums<L>; ++i)
        emit<L>(c, sum[i / BLOCKS][i % BLOCKS], target + i / BLOCKS * COPIES * row + i % BLOCKS * L, L, total[i % 2]);
      square = total[0] + total[1];
    };
    if (columns == kWide * COPIES && c.rank == kRow) return emit_all(kRow);
    if (columns == kWide * COPIES && COPIES == 1 && c.rank - r >= kRow) return emit_all(c.rank);
    // Rows of `ranks` numbers: where they are all of g they are joined, each row over the padding of the one before.
    alignas(64) float rows[kNumbers];
    FFALORA_UNROLL
    for (int i = 0; i < kSums<L>; ++i) store<L>(rows + i * L, sum[i / BLOCKS][i % BLOCKS]);
    if (c.rank > kRow || r > 0) {
      for (ptrdiff_t j = 0; j < columns; ++j)
        if constexpr (COPIES == 1) {
          for (int k = 0; k < BLOCKS; ++k)
            emit<L>(c, load<L>(rows + j * kRow + k * L), target + j * c.rank + k * L, c.rank - r - k * L, square);
        } else {
          emit<kRow>(c, load<kRow>(rows + j * kRow), target + j * c.rank, c.rank - r, short_square);
        }
      return;
    }
    alignas(64) float joined[kNumbers + L];
    for (ptrdiff_t j = 0; j < columns; ++j) std::memcpy(joined + j * c.rank, rows + j * kRow, kRow * sizeof(float));
    for (ptrdiff_t at = 0; at < columns * c.rank; at += L)
      emit<L>(c, load<L>(joined + at), target + at, columns * c.rank - at, square);
  }
};

}  // namespace ffalora
