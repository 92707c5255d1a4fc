// expand_: y[m] += scale · h[m] b_cᵀ, in place.
#include "contract.h"
#include "segments.h"

namespace ffalora {
namespace {

constexpr ptrdiff_t kRunTokens = 64;

template <class T>
void expand_run(const Activations& y, const Activations& h, const Turned& turned, const Run& run, float scale) {
  static thread_local Scratch<float> narrow_scratch;
  const ptrdiff_t padded = padded_to(h.columns, kPad);
  float* narrow = narrow_scratch.get(kRunTokens * padded);
  copy_rows(h, run.first, run.last, padded, narrow);
  const ExpandChunk<T> chunk{y.row<T>(run.first),
                             y.stride,
                             y.columns,
                             narrow,
                             turned.data + run.client * turned.client_stride,
                             turned.stride,
                             padded,
                             h.columns,
                             run.last - run.first,
                             scale};
  dispatch<Expand<T>>(&chunk);
}

}  // namespace

void expand(const Activations& y, const Activations& h, const AdapterB& b, const Segments& segments, float scale,
            int threads) {
  static thread_local Scratch<float> turned_scratch;
  const Turned turned = turn(b, y.columns, h.columns, turned_scratch, threads);
  const std::vector<Run> runs = token_runs(segments, kRunTokens);
  parallel_for(runs.size(), threads, [&](ptrdiff_t i) {
    y.half ? expand_run<bf16>(y, h, turned, runs[i], scale) : expand_run<float>(y, h, turned, runs[i], scale);
  });
}

}  // namespace ffalora
