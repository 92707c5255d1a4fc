// Losses of tokens from their logits, and the gradient of the logits, row by row while a row is in the cache.
#include <cmath>
#include <limits>

#include "contract.h"
#include "exponential.h"
#include "kernels.h"
#include "threads.h"

namespace ffalora {
namespace {

constexpr ptrdiff_t kBlock = 4096;  // columns whose exponentials one float32 sums

// One row, of `columns` numbers: logits become exponentials, which become gradients.
template <class G>
struct SoftmaxRow {
  float* z;
  G* gradient;  // null: none is asked for; z where that is float32
  ptrdiff_t columns;
  ptrdiff_t target;  // negative: there is none, and everything is NaN
  float softcap, weight;
  float loss;
  bool right;
};

template <class G>
struct Softmax {
  template <int L>
  FFALORA_INLINE static void run(SoftmaxRow<G>* row) {
    const float peak = prepare<L>(*row);
    const float shift = peak == -kInfinity ? 0.0f : peak;
    const bool known = row->target >= 0;
    const float chosen = known ? row->z[row->target] : std::numeric_limits<float>::quiet_NaN();
    const float slope = known ? slope_at(*row, chosen) : 1.0f;
    const double total = exponentials<L>(*row, shift);
    row->loss = static_cast<float>(std::log(total)) - (chosen - shift);
    row->right = chosen >= peak && row->loss == row->loss;
    if (row->gradient == nullptr) return;
    const float factor = known ? static_cast<float>(row->weight / total) : chosen;
    scale<L>(*row, factor);
    if (known) {
      const double probability = std::exp(static_cast<double>(chosen - shift)) / total;
      from_float(static_cast<float>(row->weight * (probability - 1.0)) * slope, row->gradient + row->target);
    }
  }

 private:
  FFALORA_INLINE static float slope_at(const SoftmaxRow<G>& row, float z) {
    return row.softcap > 0 ? 1.0f - (z / row.softcap) * (z / row.softcap) : 1.0f;
  }

  // Capped logits in place, and their maximum.
  template <int L>
  FFALORA_INLINE static float prepare(const SoftmaxRow<G>& row) {
    auto peaks = spread<L>(-kInfinity);
    const float twice = row.softcap > 0 ? 2.0f / row.softcap : 0.0f;
    over<L>(row.z, row.columns, -kInfinity, [&](float* at, Vec<float, L> z) __attribute__((always_inline)) {
      if (row.softcap > 0) {
        auto u = z * twice;
        u = u > 40.0f ? spread<L>(40.0f) : u;
        u = u < -40.0f ? spread<L>(-40.0f) : u;
        z = row.softcap * (1.0f - 2.0f / (exponential<L>(u) + 1.0f));
        store<L>(at, z);
      }
      peaks = z > peaks ? z : peaks;
    });
    float peak = -kInfinity;
    for (int i = 0; i < L; ++i) peak = peaks[i] > peak ? peaks[i] : peak;
    return peak;
  }

  // e^(z - shift) in place (times the slope of the cap, where a gradient is asked for); returns the sum without slopes.
  template <int L>
  FFALORA_INLINE static double exponentials(const SoftmaxRow<G>& row, float shift) {
    const bool keep = row.gradient != nullptr;
    const float per_cap = row.softcap > 0 ? 1.0f / row.softcap : 0.0f;
    double total = 0.0;
    for (ptrdiff_t first = 0; first < row.columns; first += kBlock) {
      const ptrdiff_t count = row.columns - first < kBlock ? row.columns - first : kBlock;
      Vec<float, L> sums{};
      over<L>(row.z + first, count, -kInfinity, [&](float* at, Vec<float, L> z) __attribute__((always_inline)) {
        auto e = exponential<L>(z - shift);
        sums += e;
        if (per_cap > 0) e *= 1.0f - (z * per_cap) * (z * per_cap);
        if (keep) store<L>(at, e);
      });
      float sum = 0.0f;
      for (int i = 0; i < L; ++i) sum += sums[i];
      total += sum;
    }
    return total;
  }

  template <int L>
  FFALORA_INLINE static void scale(const SoftmaxRow<G>& row, float factor) {
    ptrdiff_t v = 0;
    for (; v + L <= row.columns; v += L) store<L>(row.gradient + v, load<L>(row.z + v) * factor);
    for (; v < row.columns; ++v) from_float(row.z[v] * factor, row.gradient + v);
  }

  // body(address, vector) for every L numbers of a row; the last ones are filled up, and what is stored for them beyond
  // the row is dropped.
  template <int L, class Body>
  FFALORA_INLINE static void over(float* z, ptrdiff_t count, float filler, const Body& body) {
    ptrdiff_t v = 0;
    for (; v + L <= count; v += L) body(z + v, load<L>(z + v));
    if (v == count) return;
    alignas(64) float edge[L];
    for (int i = 0; i < L; ++i) edge[i] = filler;
    std::memcpy(edge, z + v, (count - v) * sizeof(float));
    body(edge, load<L>(edge));
    std::memcpy(z + v, edge, (count - v) * sizeof(float));
  }
};

template <class G>
void softmax_row(const HeadLogits& logits, ptrdiff_t m, G* gradient) {
  const int64_t target = logits.targets[m];
  const bool known = target >= 0 && target < logits.columns;
  SoftmaxRow<G> row{logits.data + m * logits.stride,
                    gradient,
                    logits.columns,
                    known ? static_cast<ptrdiff_t>(target) : -1,
                    logits.softcap,
                    logits.weights[m],
                    0.0f,
                    false};
  dispatch<Softmax<G>>(&row);
  logits.losses[m] = row.loss;
  logits.right[m] = row.right;
}

}  // namespace

void softmax_gradient(const HeadLogits& logits, const Activations& gradient, int threads) {
  parallel_for(logits.rows, threads, [&](ptrdiff_t m) {
    if (gradient.half) return softmax_row(logits, m, gradient.row<bf16>(m));
    softmax_row(logits, m, gradient.data == nullptr ? nullptr : gradient.row<float>(m));
  });
}

}  // namespace ffalora
