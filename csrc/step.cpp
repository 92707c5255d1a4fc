// privatize_step_: noise, division by the expected batch, proximal term and optimiser update in one pass over the
// state.
#include <cmath>
#include <vector>

#include "kernels.h"
#include "normal.h"
#include "philox.h"
#include "threads.h"

namespace ffalora {
namespace {

constexpr ptrdiff_t kBlockColumns = 1024;
constexpr int kCounters = 32;  // Philox counters handled at once
constexpr double kPerWord = 0x1p-32;
constexpr double kLeastShare = 0.125;  // of the noise variance, left in the second moment it is taken off

struct Draw {
  uint64_t key;
  uint32_t rest[3];  // client id, step, stream tag
};

// 4·kCounters normals at parameter indices 4·counter … in order.
struct Normals {
  template <int L>
  FFALORA_INLINE static void run(const Draw* draw, uint32_t counter, double* normals) {
    uint32_t words[4][kCounters];
    philox<kCounters>(counter, draw->rest, draw->key, words);
    double lanes[4][kCounters];
    for (int pair = 0; pair < 4; pair += 2)
      for (int i = 0; i < kCounters; ++i) {
        const auto u = static_cast<double>(static_cast<float>(words[pair][i] | 1u)) * kPerWord;
        const auto turn = static_cast<double>(static_cast<float>(words[pair + 1][i])) * kPerWord;
        const Pair z = box_muller(u, turn);
        lanes[pair][i] = z.first;
        lanes[pair + 1][i] = z.second;
      }
    for (int i = 0; i < kCounters; ++i)
      for (int lane = 0; lane < 4; ++lane) normals[4 * i + lane] = lanes[lane][i];
  }
};

// Normals at indices first … first+count-1.
void normals_at(const Draw& draw, uint32_t first, ptrdiff_t count, double* normals) {
  double some[4 * kCounters];
  for (ptrdiff_t done = 0; done < count;) {
    const uint32_t index = first + static_cast<uint32_t>(done);
    dispatch<Normals>(&draw, index / 4, static_cast<double*>(some));
    const ptrdiff_t skip = index % 4, room = 4 * kCounters - skip, take = count - done < room ? count - done : room;
    std::memcpy(normals + done, some + skip, take * sizeof(double));
    done += take;
  }
}

// Normals of columns first … last-1, run by run of consecutive indices; padding columns keep what they have.
void normals_of_columns(const Draw& draw, const int32_t* index, ptrdiff_t first, ptrdiff_t last, double* normals) {
  if (index == nullptr) return normals_at(draw, static_cast<uint32_t>(first), last - first, normals);
  for (ptrdiff_t p = first; p < last;) {
    ptrdiff_t end = p + 1;
    while (end < last && index[end] == index[end - 1] + 1 && index[p] >= 0) ++end;
    if (index[p] >= 0) normals_at(draw, static_cast<uint32_t>(index[p]), end - p, normals + (p - first));
    p = end;
  }
}

struct RowUpdate {
  Update options;
  double noise_std, denominator, lr;
  double correction1, correction2, noise_variance;  // 1 - β₁ᵗ, 1 - β₂ᵗ, (noise_std/denominator)²
  float *state, *exp_avg, *exp_avg_sq;
  const double *total, *normals;
  const float* anchor;
};

// Columns first … last-1 of one client, none of them padding; the branches are the same for all of them.
struct Apply {
  template <int L>
  FFALORA_INLINE static void run(const RowUpdate* row, ptrdiff_t first, ptrdiff_t last) {
    const RowUpdate r = *row;
    if (r.options.adamw) {
      if (r.anchor != nullptr) return adamw<true>(r, first, last);
      return adamw<false>(r, first, last);
    }
    if (r.anchor != nullptr) return sgd<true>(r, first, last);
    return sgd<false>(r, first, last);
  }

 private:
  template <bool ANCHORED>
  FFALORA_INLINE static double gradient(const RowUpdate& r, ptrdiff_t p, double theta) {
    const double mean = (r.total[p] + r.noise_std * r.normals[p]) / r.denominator;
    return ANCHORED ? mean + r.options.mu * (theta - r.anchor[p]) : mean;
  }

  template <bool ANCHORED>
  FFALORA_INLINE static void sgd(const RowUpdate& r, ptrdiff_t first, ptrdiff_t last) {
    if (r.exp_avg == nullptr) {
      FFALORA_INDEPENDENT
      for (ptrdiff_t p = first; p < last; ++p) {
        const double theta = r.state[p];
        r.state[p] = theta - r.lr * (gradient<ANCHORED>(r, p, theta) + r.options.weight_decay * theta);
      }
      return;
    }
    FFALORA_INDEPENDENT
    for (ptrdiff_t p = first; p < last; ++p) {
      const double theta = r.state[p];
      const double update = gradient<ANCHORED>(r, p, theta) + r.options.weight_decay * theta;
      const double momentum = r.options.beta1 * r.exp_avg[p] + update;
      r.exp_avg[p] = momentum;
      r.state[p] = theta - r.lr * momentum;
    }
  }

  template <bool ANCHORED>
  FFALORA_INLINE static void adamw(const RowUpdate& r, ptrdiff_t first, ptrdiff_t last) {
    const Update& o = r.options;
    const double taken_off = o.dp_bias_correction ? r.noise_variance : 0.0;
    const double least = kLeastShare * taken_off;
    FFALORA_INDEPENDENT
    for (ptrdiff_t p = first; p < last; ++p) {
      const double theta = r.state[p];
      const double grad = gradient<ANCHORED>(r, p, theta);
      const double m = o.beta1 * r.exp_avg[p] + (1 - o.beta1) * grad;
      const double v = o.beta2 * r.exp_avg_sq[p] + (1 - o.beta2) * grad * grad;
      r.exp_avg[p] = m;
      r.exp_avg_sq[p] = v;
      const double corrected = v / r.correction2 - taken_off;
      const double v_hat = corrected < least ? least : corrected;
      r.state[p] = theta - r.lr * (m / r.correction1 / (std::sqrt(v_hat) + o.eps) + o.weight_decay * theta);
    }
  }
};

RowUpdate row_update(const StepTensors& t, const Update& options, ptrdiff_t c) {
  const auto age = static_cast<double>(t.age[c]);
  const double noise = t.noise_std[c] > 0 ? t.noise_std[c] : 0.0, deviation = t.noise_std[c] / t.denominator[c];
  RowUpdate row{};
  row.options = options;
  row.noise_std = noise;
  row.denominator = t.denominator[c];
  row.lr = t.lr[c];
  row.correction1 = 1 - std::pow(options.beta1, age);
  row.correction2 = 1 - std::pow(options.beta2, age);
  row.noise_variance = deviation * deviation;
  row.state = t.state.row<float>(c);
  row.exp_avg = t.exp_avg.row<float>(c);
  row.exp_avg_sq = t.exp_avg_sq.row<float>(c);
  row.total = t.total.row<double>(c);
  row.anchor = t.anchor.row<float>(c);
  return row;
}

// Padding columns: the state stays as it is, its moments are zero.
void apply(const StepTensors& t, const RowUpdate& row, ptrdiff_t first, ptrdiff_t last) {
  if (t.index == nullptr) return dispatch<Apply>(&row, first, last);
  for (ptrdiff_t p = first; p < last;) {
    const bool real = t.index[p] >= 0;
    ptrdiff_t end = p + 1;
    while (end < last && (t.index[end] >= 0) == real) ++end;
    if (real) {
      dispatch<Apply>(&row, p, end);
    } else {
      for (ptrdiff_t q = p; q < end; ++q) {
        if (row.exp_avg != nullptr) row.exp_avg[q] = 0.0f;
        if (row.options.adamw) row.exp_avg_sq[q] = 0.0f;
      }
    }
    p = end;
  }
}

}  // namespace

void privatize_step(const StepTensors& tensors, uint64_t key, uint32_t stream, const Update& update, int threads) {
  const ptrdiff_t blocks = (tensors.columns + kBlockColumns - 1) / kBlockColumns;
  parallel_for(tensors.clients * blocks, threads, [&](ptrdiff_t item) {
    const ptrdiff_t c = item / blocks, first = item % blocks * kBlockColumns;
    const ptrdiff_t last = tensors.columns - first < kBlockColumns ? tensors.columns : first + kBlockColumns;
    double normals[kBlockColumns] = {};
    RowUpdate row = row_update(tensors, update, c);
    row.normals = normals - first;
    if (row.noise_std > 0) {
      const auto id = static_cast<uint32_t>(tensors.client_id[c]), step = static_cast<uint32_t>(tensors.step[c]);
      normals_of_columns(Draw{key, {id, step, stream}}, tensors.index, first, last, normals);
    }
    apply(tensors, row, first, last);
  });
}

void gaussian(uint64_t key, uint32_t client_id, uint32_t step, uint32_t stream, uint32_t first, ptrdiff_t count,
              double* normals) {
  normals_at(Draw{key, {client_id, step, stream}}, first, count, normals);
}

}  // namespace ffalora
