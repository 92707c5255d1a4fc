// Per segment scale · wideᵀ narrow into arena columns: what backward and outer share.
#pragma once

#include <type_traits>
#include <vector>

#include "amx_gradient.h"
#include "rank_gradient.h"
#include "segments.h"

namespace ffalora {

// Tokens first … last-1 and wide columns column … end-1 of a segment.
struct Part {
  ptrdiff_t first, last, column, end;
};

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
        rank_lanes_(rank_contiguous && narrow.columns > 1),
        groups_((wide.columns + kGroup - 1) / kGroup),
        products_(!wide.half   ? kFloat
                  : amx()      ? kTiles
                  : bf16_dot() ? kDot
                               : kFloat),
        padded_(products_ == kTiles ? padded_to(narrow.columns, 16) * 16
                                    : padded_to(narrow.columns, rank_lanes_ ? lanes() : kPad)),
        squares_(segments.count * groups_) {}

  ptrdiff_t groups() const { return groups_; }

  // Groups first … last-1 of segment i, a few groups and a chunk of tokens at a time: what is read for one group is
  // found in the cache for the next. before(part) is called ahead of each.
  template <class Before>
  void segment(ptrdiff_t i, ptrdiff_t first, ptrdiff_t last, const Before& before) {
    static thread_local Scratch<float> narrow_scratch, partial_scratch;
    const TilesInUse in_use(products_ == kTiles);
    const ptrdiff_t start = segments_.offsets[i], end = segments_.offsets[i + 1];
    const size_t group_size = partial_size(kGroup, narrow_.columns);
    float* narrow = narrow_scratch.get(padded_to(end - start, products_) / products_ * padded_);
    float* partial = end - start > kChunkTokens ? partial_scratch.get(kGroupsAtOnce * group_size) : nullptr;
    copy(start, end, narrow);
    for (ptrdiff_t k = first; k < last; k += kGroupsAtOnce) {
      const ptrdiff_t stop = last - k < kGroupsAtOnce ? last : k + kGroupsAtOnce;
      ptrdiff_t at = start;
      do {
        const ptrdiff_t until = end - at < kChunkTokens ? end : at + kChunkTokens;
        before(Part{at, until, k * kGroup, stop == groups_ ? wide_.columns : stop * kGroup});
        for (ptrdiff_t j = k; j < stop; ++j) {
          float* sums = partial == nullptr ? nullptr : partial + (j - k) * group_size;
          const float* rows = narrow + (at - start) / products_ * padded_;
          wide_.half ? group<bf16>(i, j, at, until, rows, sums) : group<float>(i, j, at, until, rows, sums);
        }
        at = until;
      } while (at < end);
    }
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
  static constexpr ptrdiff_t kGroup = 128, kGroupsAtOnce = kBlockColumns / kGroup;

  // What multiplies, by how many tokens a row of the copied narrow holds.
  enum Products : ptrdiff_t { kFloat = 1, kDot = 2, kTiles = 32 };

  void copy(ptrdiff_t at, ptrdiff_t stop, float* narrow) const {
    auto* words = reinterpret_cast<uint32_t*>(narrow);
#ifdef FFALORA_AMX
    if (products_ == kTiles) return turn_to_tiles(narrow_, at, stop, reinterpret_cast<bf16*>(narrow));
#endif
#ifdef FFALORA_BF16_DOT
    if (rank_lanes_ && products_ == kDot) return copy_words<DotWord, bf16>(at, stop, words);
    if (products_ == kDot) return copy_pairs(at, stop, reinterpret_cast<bf16*>(narrow));
#endif
    if (rank_lanes_)
      return wide_.half ? copy_words<FloatWord, bf16>(at, stop, words) : copy_words<FloatWord, float>(at, stop, words);
    if (narrow_.data != nullptr) return copy_rows(narrow_, at, stop, padded_, narrow);
    for (ptrdiff_t j = 0; j < (stop - at) * padded_; ++j) narrow[j] = j % padded_ == 0 ? 1.0f : 0.0f;
  }

  template <class Word, class From>
  void copy_words(ptrdiff_t at, ptrdiff_t stop, uint32_t* words) const {
    dispatch_words<Word, NarrowWords<Word>>(narrow_.row<const From>(at), narrow_.stride, narrow_.columns, stop - at,
                                            words);
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

  template <class T>
  void run(const GradientChunk<T>& chunk) const {
#ifdef FFALORA_AMX
    if constexpr (std::is_same<T, bf16>::value)
      if (products_ == kTiles)
        return rank_lanes_ ? dispatch<AmxGradient<true>>(&chunk) : dispatch<AmxGradient<false>>(&chunk);
#endif
#ifdef FFALORA_BF16_DOT
    if constexpr (std::is_same<T, bf16>::value) {
      if (rank_lanes_ && products_ == kDot) return run_avx512<RankGradient<bf16, DotWord>>(&chunk);
      if (products_ == kDot) return run_avx512<Gradient<bf16, DotProducts>>(&chunk);
    }
#endif
    rank_lanes_ ? dispatch<RankGradient<T, FloatWord>>(&chunk) : dispatch<Gradient<T>>(&chunk);
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
    chunk.target = arena_.data + i * arena_.stride + n * (rank_lanes_ ? narrow_.columns : 1);
    chunk.rank_stride = wide_.columns;
    chunk.accumulate = arena_.accumulate;
    chunk.square = &squares_[i * groups_ + k];
    run(chunk);
  }

  Activations wide_, narrow_;  // narrow_.data null: one column of ones
  Segments segments_;
  ArenaColumns arena_;
  float scale_;
  bool rank_lanes_;  // g is rank-contiguous
  ptrdiff_t groups_;
  Products products_;
  ptrdiff_t padded_;  // float32 numbers of a row of the copied narrow
  std::vector<double> squares_;
};

// Enough segments to keep all threads busy with whole ones.
inline bool by_segment(const Segments& segments, int threads) { return threads <= 1 || segments.count >= 4 * threads; }

}  // namespace ffalora
