// outer: per segment scale · pᵀ q, or the column sums of p, into arena columns.
#include "contract.h"
#include "gradient.h"

namespace ffalora {

void outer(const Activations& p, const Activations& q, const Segments& segments, float scale, const ArenaColumns& arena,
           int threads) {
  const bool q_is_wide = q.data != nullptr && q.columns >= p.columns;
  SegmentGradients gradients(q_is_wide ? q : p, q_is_wide ? p : q, !q_is_wide, scale, segments, arena);
  const ptrdiff_t groups = gradients.groups();
  const auto nothing = [](const Part&) {};
  if (by_segment(segments, threads)) {
    parallel_for(segments.count, threads, [&](ptrdiff_t i) { gradients.segment(i, 0, groups, nothing); });
  } else {
    parallel_for(segments.count * groups, threads,
                 [&](ptrdiff_t item) { gradients.segment(item / groups, item % groups, item % groups + 1, nothing); });
  }
  gradients.write_squares();
}

}  // namespace ffalora
