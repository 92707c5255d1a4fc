// Per segment scale · wideᵀ narrow into arena columns: what backward and outer share.
#pragma once

#include <vector>

#include "rank_lanes.h"
#include "segments.h"

namespace ffalora {

// One product per segment. Its columns are cut into groups of kGroup; each group's squared norm is kept apart and the
// groups are added in order, so the result does not depend on which thread made which group.
class SegmentGradients {
 public:
  SegmentGradients(const Activations& wide, const Activations& narrow, bool rank_contiguous, float scale,
                   const Segments& segments, const ArenaColumns& arena)
      : wide_(wide),
        narrow_(narrow),
        segments_(segments),
        arena_(arena),
        scale_(scale),
        rank_lanes_(rank_contiguous && narrow.columns > 1 && wide.half && bf16_dot()),
        column_stride_(rank_contiguous ? narrow.columns : 1),
        rank_stride_(rank_contiguous ? 1 : wide.columns),
        groups_((wide.columns + kGroup - 1) / kGroup),
        padded_(padded_to(narrow.columns, kPad)),
        chunk_(chunk_tokens(wide.columns * (wide.half ? 2 : 4))),
        squares_(segments.count * groups_) {}

  ptrdiff_t groups() const { return groups_; }

  // Groups first … last-1 of segment i, chunk by chunk; before(token, end) is called ahead of each chunk.
  template <class Before>
  void segment(ptrdiff_t i, ptrdiff_t first, ptrdiff_t last, const Before& before) {
    static thread_local Scratch<float> narrow_scratch, partial_scratch;
    const ptrdiff_t start = segments_.offsets[i], end = segments_.offsets[i + 1];
    const size_t group_size = partial_size(kGroup, narrow_.columns);
    float* narrow = narrow_scratch.get(chunk_ * padded_);
    float* partial = end - start > chunk_ ? partial_scratch.get((last - first) * group_size) : nullptr;
    ptrdiff_t at = start;
    do {
      const ptrdiff_t stop = end - at < chunk_ ? end : at + chunk_;
      before(at, stop);
      copy(at, stop, narrow);
      for (ptrdiff_t k = first; k < last; ++k) {
        float* sums = partial == nullptr ? nullptr : partial + (k - first) * group_size;
        wide_.half ? group<bf16>(i, k, at, stop, narrow, sums) : group<float>(i, k, at, stop, narrow, sums);
      }
      at = stop;
    } while (at < end);
  }

  void write_squares() const {
    if (arena_.squares == nullptr) return;
    for (ptrdiff_t i = 0; i < segments_.count; ++i) {
      double sum = 0;
      for (ptrdiff_t k = 0; k < groups_; ++k) sum += squares_[i * groups_ + k];
      arena_.squares[i * arena_.squares_stride] = sum;
    }
  }

 private:
  static constexpr ptrdiff_t kGroup = 128;

  void copy(ptrdiff_t at, ptrdiff_t stop, float* narrow) const {
#ifdef FFALORA_BF16_DOT
    if (rank_lanes_)
      return run_avx512<NarrowWords>(narrow_.row<const bf16>(at), narrow_.stride, narrow_.columns, stop - at,
                                     reinterpret_cast<uint32_t*>(narrow));
    if (wide_.half && bf16_dot()) return copy_pairs(at, stop, reinterpret_cast<bf16*>(narrow));
#endif
    if (narrow_.data != nullptr) return copy_rows(narrow_, at, stop, padded_, narrow);
    for (ptrdiff_t j = 0; j < (stop - at) * padded_; ++j) narrow[j] = j % padded_ == 0 ? 1.0f : 0.0f;
  }

#ifdef FFALORA_BF16_DOT
  // Tokens in pairs, as DotProducts reads them; zeros stand for a token beyond the last.
  void copy_pairs(ptrdiff_t at, ptrdiff_t stop, bf16* narrow) const {
    constexpr bf16 kOne{0x3f80};
    for (ptrdiff_t m = at; m < stop; m += 2, narrow += 2 * padded_) {
      std::memset(narrow, 0, 2 * padded_ * sizeof(bf16));
      for (ptrdiff_t half = 0; half < 2 && m + half < stop; ++half) {
        const bf16* row = narrow_.data == nullptr ? &kOne : narrow_.row<bf16>(m + half);
        for (ptrdiff_t r = 0; r < narrow_.columns; ++r) narrow[2 * r + half] = row[r];
      }
    }
  }
#endif

  void run(const GradientChunk<float>& chunk) const { dispatch<Gradient<float>>(&chunk); }
  void run(const GradientChunk<bf16>& chunk) const {
#ifdef FFALORA_BF16_DOT
    if (rank_lanes_) return run_avx512<RankGradient>(&chunk);
    if (bf16_dot()) return run_avx512<Gradient<bf16, DotProducts>>(&chunk);
#endif
    dispatch<Gradient<bf16>>(&chunk);
  }

  template <class T>
  void group(ptrdiff_t i, ptrdiff_t k, ptrdiff_t at, ptrdiff_t stop, const float* narrow, float* partial) {
    const ptrdiff_t n = k * kGroup, left = wide_.columns - n;
    GradientChunk<T> chunk;
    chunk.wide = wide_.row<T>(at) + n;
    chunk.wide_stride = wide_.stride;
    chunk.width = left < kGroup ? left : kGroup;
    chunk.narrow = narrow;
    chunk.padded = padded_;
    chunk.rank = narrow_.columns;
    chunk.tokens = stop - at;
    chunk.partial = partial;
    chunk.first = at == segments_.offsets[i];
    chunk.last = stop == segments_.offsets[i + 1];
    chunk.scale = scale_;
    chunk.target = arena_.data + i * arena_.stride + n * column_stride_;
    chunk.column_stride = column_stride_;
    chunk.rank_stride = rank_stride_;
    chunk.accumulate = arena_.accumulate;
    chunk.square = &squares_[i * groups_ + k];
    run(chunk);
  }

  Activations wide_, narrow_;  // narrow_.data null: one column of ones
  Segments segments_;
  ArenaColumns arena_;
  float scale_;
  bool rank_lanes_;  // g is rank-contiguous, and the processor has the dot instruction
  ptrdiff_t column_stride_, rank_stride_, groups_, padded_, chunk_;
  std::vector<double> squares_;
};

// Enough segments to keep all threads busy with whole ones.
inline bool by_segment(const Segments& segments, int threads) { return threads <= 1 || segments.count >= 4 * threads; }

}  // namespace ffalora
