// Attention inside the samples of a packed batch, and its gradient.
#include "attention.h"

#include "contract.h"
#include "threads.h"

namespace ffalora {
namespace {

template <class T, template <class> class Leaf>
void each_head(const AttentionGradient& tensors, int threads) {
  const Attention& t = tensors.forward;
  parallel_for(t.count * t.kv_heads, threads, [&](ptrdiff_t item) {
    static thread_local Scratch<float> scratch;
    const ptrdiff_t i = item / t.kv_heads, tokens = t.offsets[i + 1] - t.offsets[i];
    if (tokens == 0) return;
    float* room = scratch.get(HeadWork<T>(tokens, t.width).floats());
    const SampleHead<T> sample{&tensors, t.offsets[i], tokens, item % t.kv_heads, room};
    dispatch<Leaf<T>>(&sample);
  });
}

}  // namespace

void attention(const Attention& tensors, int threads) {
  const AttentionGradient only{tensors, {}, {}, {}, {}};
  tensors.half ? each_head<bf16, HeadForward>(only, threads) : each_head<float, HeadForward>(only, threads);
}

void attention_gradient(const AttentionGradient& tensors, int threads) {
  tensors.forward.half ? each_head<bf16, HeadBackward>(tensors, threads)
                       : each_head<float, HeadBackward>(tensors, threads);
}

}  // namespace ffalora
