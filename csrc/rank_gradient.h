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
    for (ptrdiff_t n = 0; n < c.width; n += kPanel) {
      const ptrdiff_t columns = c.width - n < kPanel ? c.width - n : kPanel;
      const void* words = packed;
      ptrdiff_t stride = kPanel;
      if (std::is_same<T, typename Word::Number>::value && Word::kRows == 1 && columns == kPanel) {
        words = c.wide + n;
        stride = c.wide_stride;
      } else {
        pack<L>(c, n, columns, packed);
      }
      if (c.last) prefetch_target(c, n + kPanelsAhead * kPanel, columns);
      for (ptrdiff_t r = 0; r < c.rank; r += L) {
        if (copied_twice<L>(c.rank, r)) {
          columns_of<L, 2>(c, words, stride, n, columns, r, partial, square, short_square);
        } else {
          const void* second = static_cast<const uint32_t*>(words) + kSums<L>;
          columns_of<L, 1>(c, words, stride, n, columns, r, partial, square, short_square);
          columns_of<L, 1>(c, second, stride, n + kSums<L>, columns - kSums<L>, r, partial, square, short_square);
        }
      }
    }
    if (!c.last) return;
    double total = 0;
    for (int i = 0; i < L; ++i) total += square[i];
    for (int i = 0; i < L / 2; ++i) total += short_square[i];
    *c.square = total;
  }

 private:
  template <int L>
  static constexpr int kSums = L == 16 ? 16 : 8;  // vectors of sums held in registers
  static constexpr int kPanelsAhead = 2;  // between the one in use and the one whose target is asked of the memory

  template <int L>
  FFALORA_INLINE static void pack(const GradientChunk<T>& c, ptrdiff_t n, ptrdiff_t columns, uint32_t* packed) {
#ifdef FFALORA_BF16_DOT
    if constexpr (Word::kRows == 2) return DotProducts::pack<L>(c, n, columns, packed);
#endif
    FloatProducts<T>::template pack<kSums<L>>(c, n, columns, packed);
  }

  // kSums · COPIES columns from n on, of which `columns` are real, for the block of ranks at r.
  template <int L, int COPIES>
  FFALORA_INLINE static void columns_of(const GradientChunk<T>& c, const void* wide, ptrdiff_t wide_stride, ptrdiff_t n,
                                        ptrdiff_t columns, ptrdiff_t r, float*& partial, Vec<double, L>& square,
                                        Vec<double, L / 2>& short_square) {
    const auto* words = reinterpret_cast<const uint32_t*>(c.narrow) + r;
    const auto* at = static_cast<const uint32_t*>(wide);
    const ptrdiff_t stride = rank_blocks(c.rank, L) * L;
    Vec<float, L> sum[kSums<L>] = {};
    for (ptrdiff_t m = 0; m < c.tokens; m += Word::kRows, words += stride, at += wide_stride) {
      Words<L> factors = load_block<L>(words);
      keep(factors);
      FFALORA_UNROLL
      for (int i = 0; i < kSums<L>; ++i) Word::template add<L>(sum[i], spread<COPIES, L>(at + i * COPIES), factors);
    }
    if (!(c.first && c.last)) {
      FFALORA_UNROLL
      for (int i = 0; i < kSums<L>; ++i, partial += L) {
        if (!c.first) sum[i] += load<L>(partial);
        if (!c.last) store<L>(partial, sum[i]);
      }
    }
    constexpr int kColumns = kSums<L> * COPIES;
    if (c.last && columns > 0)
      finish<L, COPIES>(c, sum, n, columns < kColumns ? columns : kColumns, r, square, short_square);
  }

  template <int L, int COPIES>
  FFALORA_INLINE static void finish(const GradientChunk<T>& c, Vec<float, L> (&sum)[kSums<L>], ptrdiff_t n,
                                    ptrdiff_t columns, ptrdiff_t r, Vec<double, L>& square,
                                    Vec<double, L / 2>& short_square) {
    constexpr int kRow = L / COPIES, kNumbers = kSums<L> * L;
    float* target = c.target + n * c.rank + r;
    if constexpr (COPIES == 2) {
      FFALORA_UNROLL
      for (int i = 0; i < kSums<L>; ++i) sum[i] = even_then_odd<L>(sum[i]);
    }
    if (c.rank == kRow && columns == kSums<L> * COPIES) {
      Vec<double, L> total[2] = {square};
      FFALORA_UNROLL
      for (int i = 0; i < kSums<L>; ++i) emit<L>(c, sum[i], target + i * L, L, total[i % 2]);
      square = total[0] + total[1];
      return;
    }
    // Rows of `ranks` numbers: where they are all of g they are joined, each row over the padding of the one before.
    alignas(64) float rows[kNumbers];
    FFALORA_UNROLL
    for (int i = 0; i < kSums<L>; ++i) store<L>(rows + i * L, sum[i]);
    if (c.rank > kRow || r > 0) {
      for (ptrdiff_t j = 0; j < columns; ++j)
        if constexpr (COPIES == 1) {
          emit<kRow>(c, load<kRow>(rows + j * kRow), target + j * c.rank, c.rank - r, square);
        } else {
          emit<kRow>(c, load<kRow>(rows + j * kRow), target + j * c.rank, c.rank - r, short_square);
        }
      return;
    }
    alignas(64) float joined[kNumbers + L];
    for (ptrdiff_t j = 0; j < columns; ++j) store<kRow>(joined + j * c.rank, load<kRow>(rows + j * kRow));
    for (ptrdiff_t at = 0; at < columns * c.rank; at += L)
      emit<L>(c, load<L>(joined + at), target + at, columns * c.rank - at, square);
  }
};

}  // namespace ffalora
