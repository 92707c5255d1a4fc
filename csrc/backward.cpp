// backward: dh = scale · dy b_c, and per segment g = scale · dyᵀ h into arena columns.
//
// Chunk by chunk of a segment's tokens: dh reads the chunk from memory, g finds it in the cache.
#include "contract.h"
#include "gradient.h"

namespace ffalora {
namespace {

constexpr ptrdiff_t kBlockColumns = 512;  // columns of dy and b that dh works on at once

// dh of a run of tokens, in float32 lanes over the columns of dy.
template <class T>
class InputGradients {
 public:
  InputGradients(const Activations& dy, const AdapterB& b, const Activations& dh, float scale, int threads)
      : dy_(dy), dh_(dh), scale_(scale) {
    static thread_local Scratch<float> turned_scratch;
    turned_ = turn(b, dy.columns, dh.columns, turned_scratch, threads);
  }

  void operator()(const Run& run) const {
    static thread_local Scratch<float> sum_scratch;
    const ptrdiff_t tokens = run.last - run.first, padded = padded_to(dh_.columns, kPad);
    float* sum = sum_scratch.get(tokens * padded);
    for (ptrdiff_t n = 0; n < dy_.columns; n += kBlockColumns) {
      InputChunk<T> chunk;
      chunk.wide = dy_.row<T>(run.first) + n;
      chunk.wide_stride = dy_.stride;
      chunk.width = dy_.columns - n < kBlockColumns ? dy_.columns - n : kBlockColumns;
      chunk.turned = turned_.client(run.client) + n;
      chunk.turned_stride = turned_.stride;
      chunk.padded = padded;
      chunk.rank = dh_.columns;
      chunk.tokens = tokens;
      chunk.sum = sum;
      chunk.first = n == 0;
      dispatch<InputGradient<T>>(&chunk);
    }
    for (ptrdiff_t m = 0; m < tokens; ++m)
      for (ptrdiff_t r = 0; r < dh_.columns; ++r)
        from_float(dy_.columns > 0 ? scale_ * sum[m * padded + r] : 0.0f, dh_.row<T>(run.first + m) + r);
  }

 private:
  Activations dy_, dh_;
  Turned turned_;
  float scale_;
};

#ifdef FFALORA_BF16_DOT
// dh of a run of tokens by the bfloat16 dot instruction.
class RankInputGradients {
 public:
  RankInputGradients(const Activations& dy, const AdapterB& b, const Activations& dh, float scale, int threads)
      : dy_(dy), dh_(dh), scale_(scale), client_words_(rank_blocks(dh.columns) * FactorWords::block(dy.columns)) {
    static thread_local Scratch<uint32_t> word_scratch;
    uint32_t* words = word_scratch.get(b.clients * client_words_);
    words_ = words;
    const auto turn = [&](const auto* factors, ptrdiff_t c) {
      run_avx512<FactorWords>(factors + c * b.stride, dy.columns, dh.columns, words + c * client_words_);
    };
    parallel_for(b.clients, threads, [&](ptrdiff_t c) {
      b.half ? turn(static_cast<const bf16*>(b.data), c) : turn(static_cast<const float*>(b.data), c);
    });
  }

  void operator()(const Run& run) const {
    const RankInputChunk chunk{dy_.row<const bf16>(run.first),
                               dy_.stride,
                               dy_.columns,
                               words_ + run.client * client_words_,
                               dh_.columns,
                               run.last - run.first,
                               scale_,
                               dh_.row<bf16>(run.first),
                               dh_.stride};
    run_avx512<RankInputGradient>(&chunk);
  }

 private:
  Activations dy_, dh_;
  float scale_;
  ptrdiff_t client_words_;
  const uint32_t* words_;
};
#endif

template <class InputGradients>
void backward_with(const InputGradients& input_gradients, SegmentGradients& gradients, const Segments& segments,
                   int threads) {
  const ptrdiff_t groups = gradients.groups();
  if (by_segment(segments, threads)) {
    parallel_for(segments.count, threads, [&](ptrdiff_t i) {
      gradients.segment(i, 0, groups,
                        [&](ptrdiff_t at, ptrdiff_t stop) { input_gradients(Run{at, stop, segments.client[i]}); });
    });
  } else {
    const std::vector<Run> runs = token_runs(segments, 64);
    parallel_for(runs.size(), threads, [&](ptrdiff_t i) { input_gradients(runs[i]); });
    parallel_for(segments.count * groups, threads, [&](ptrdiff_t item) {
      gradients.segment(item / groups, item % groups, item % groups + 1, [](ptrdiff_t, ptrdiff_t) {});
    });
  }
  gradients.write_squares();
}

}  // namespace

void backward(const Activations& dy, const Activations& h, const AdapterB& b, const Activations& dh,
              const Segments& segments, float scale, const ArenaColumns& arena, int threads) {
  SegmentGradients gradients(dy, h, true, scale, segments, arena);
#ifdef FFALORA_BF16_DOT
  if (dy.half && bf16_dot())
    return backward_with(RankInputGradients(dy, b, dh, scale, threads), gradients, segments, threads);
#endif
  if (dy.half) return backward_with(InputGradients<bf16>(dy, b, dh, scale, threads), gradients, segments, threads);
  backward_with(InputGradients<float>(dy, b, dh, scale, threads), gradients, segments, threads);
}

}  // namespace ffalora
