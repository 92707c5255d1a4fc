// backward: dh = scale · dy b_c, and per segment g = scale · dyᵀ h into arena columns.
//
// Chunk by chunk of a segment's tokens: dh reads the chunk from memory, g finds it in the cache.
#include "contract.h"
#include "gradient.h"

namespace ffalora {
namespace {

constexpr ptrdiff_t kBlockColumns = 512;  // columns of dy and b that dh works on at once

template <class T, class B>
void input_gradient(const Activations& dy, const Turned<B>& turned, const Activations& dh, const Run& run,
                    float scale) {
  static thread_local Scratch<float> sum_scratch;
  const ptrdiff_t tokens = run.last - run.first, padded = padded_to(dh.columns, kPad);
  float* sum = sum_scratch.get(tokens * padded);
  for (ptrdiff_t n = 0; n < dy.columns; n += kBlockColumns) {
    InputChunk<T> chunk;
    chunk.wide = dy.row<T>(run.first) + n;
    chunk.wide_stride = dy.stride;
    chunk.width = dy.columns - n < kBlockColumns ? dy.columns - n : kBlockColumns;
    chunk.turned = turned.client(run.client) + n;
    chunk.turned_stride = turned.stride;
    chunk.padded = padded;
    chunk.rank = dh.columns;
    chunk.tokens = tokens;
    chunk.sum = sum;
    chunk.first = n == 0;
    run_input_gradient(chunk);
  }
  for (ptrdiff_t m = 0; m < tokens; ++m)
    for (ptrdiff_t r = 0; r < dh.columns; ++r)
      from_float(dy.columns > 0 ? scale * sum[m * padded + r] : 0.0f, dh.row<T>(run.first + m) + r);
}

// T: activations; B: the copy of b that their products want.
template <class T, class B>
void backward_of(const Activations& dy, const Activations& h, const AdapterB& b, const Activations& dh,
                 const Segments& segments, float scale, const ArenaColumns& arena, int threads) {
  static thread_local Scratch<B> turned_scratch;
  const Turned<B> turned = turn(b, dy.columns, h.columns, turned_scratch, threads);
  SegmentGradients gradients(dy, h, true, scale, segments, arena);
  const ptrdiff_t groups = gradients.groups();
  if (by_segment(segments, threads)) {
    parallel_for(segments.count, threads, [&](ptrdiff_t i) {
      gradients.segment(i, 0, groups, [&](ptrdiff_t at, ptrdiff_t stop) {
        input_gradient<T>(dy, turned, dh, Run{at, stop, segments.client[i]}, scale);
      });
    });
  } else {
    const std::vector<Run> runs = token_runs(segments, 64);
    parallel_for(runs.size(), threads, [&](ptrdiff_t i) { input_gradient<T>(dy, turned, dh, runs[i], scale); });
    parallel_for(segments.count * groups, threads, [&](ptrdiff_t item) {
      gradients.segment(item / groups, item % groups, item % groups + 1, [](ptrdiff_t, ptrdiff_t) {});
    });
  }
  gradients.write_squares();
}

}  // namespace

void backward(const Activations& dy, const Activations& h, const AdapterB& b, const Activations& dh,
              const Segments& segments, float scale, const ArenaColumns& arena, int threads) {
  if (!dy.half) return backward_of<float, float>(dy, h, b, dh, segments, scale, arena, threads);
  if (bf16_dot()) return backward_of<bf16, bf16>(dy, h, b, dh, segments, scale, arena, threads);
  backward_of<bf16, float>(dy, h, b, dh, segments, scale, arena, threads);
}

}  // namespace ffalora
