// clip_reduce_: clip factors from the norms, and the clipped sum of each client in float64.
#include <cmath>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace ffalora {
namespace {

constexpr double kNormMargin = 1.0 + 0x1p-20;  // covers the rounding of the factor and of the clipped row
constexpr ptrdiff_t kBlockColumns = 8192;

// Σ row² in float64.
struct RowSquare {
  template <int L>
  FFALORA_INLINE static void run(const float* row, ptrdiff_t columns, double* result) {
    Vec<double, L> sum[2] = {};
    ptrdiff_t p = 0;
    for (; p + 2 * L <= columns; p += 2 * L)
      for (int half = 0; half < 2; ++half) {
        const auto wide = __builtin_convertvector(load<L>(row + p + half * L), Vec<double, L>);
        sum[half] += wide * wide;
      }
    double total = 0;
    for (int i = 0; i < L; ++i) total += sum[0][i] + sum[1][i];
    for (; p < columns; ++p) total += static_cast<double>(row[p]) * row[p];
    *result = total;
  }
};

struct WeightedRow {
  const float* row;
  double factor;
};

// total += Σ factor · row over up to four rows, added in order.
struct AddRows {
  template <int L>
  FFALORA_INLINE static void run(double* total, const WeightedRow* rows, int count, ptrdiff_t columns) {
    if (count == 4) {
      add<L, 4>(total, rows, columns);
    } else {
      for (int i = 0; i < count; ++i) add<L, 1>(total, rows + i, columns);
    }
  }

 private:
  template <int L, int ROWS>
  FFALORA_INLINE static void add(double* total, const WeightedRow* rows, ptrdiff_t columns) {
    ptrdiff_t p = 0;
    for (; p + L <= columns; p += L) {
      Vec<double, L> sum;
      std::memcpy(&sum, total + p, sizeof(sum));
      for (int i = 0; i < ROWS; ++i)
        sum += __builtin_convertvector(load<L>(rows[i].row + p), Vec<double, L>) * rows[i].factor;
      std::memcpy(total + p, &sum, sizeof(sum));
    }
    for (; p < columns; ++p)
      for (int i = 0; i < ROWS; ++i) total[p] += rows[i].factor * rows[i].row[p];
  }
};

double factor_of(double norm, double limit, const Clipping& clipping) {
  if (clipping.automatic) return limit / (norm * kNormMargin + clipping.gamma);
  return norm * kNormMargin > limit ? limit / (norm * kNormMargin) : 1.0;
}

struct Block {
  ptrdiff_t group, first, last;
};

std::vector<Block> column_blocks(const Clipping& clipping) {
  std::vector<Block> blocks;
  for (ptrdiff_t k = 0; k < clipping.groups; ++k) {
    const ptrdiff_t end = clipping.group_columns[k + 1];
    for (ptrdiff_t at = clipping.group_columns[k]; at < end; at += kBlockColumns)
      blocks.push_back({k, at, end - at < kBlockColumns ? end : at + kBlockColumns});
  }
  return blocks;
}

}  // namespace

void clip_reduce(double* total, ptrdiff_t total_stride, const float* arena, ptrdiff_t arena_stride,
                 const double* squares, ptrdiff_t squares_stride, const int32_t* client, ptrdiff_t segments,
                 const Clipping& clipping, double* factors, double* norms, int threads) {
  const ptrdiff_t groups = clipping.groups;
  parallel_for(segments, squares == nullptr ? threads : 1, [&](ptrdiff_t i) {
    bool finite = true;
    for (ptrdiff_t k = 0; k < groups; ++k) {
      double square;
      if (squares != nullptr) {
        square = squares[i * squares_stride + k];
      } else {
        const ptrdiff_t first = clipping.group_columns[k];
        dispatch<RowSquare>(arena + i * arena_stride + first, clipping.group_columns[k + 1] - first, &square);
      }
      const double norm = std::sqrt(square);
      norms[i * groups + k] = norm;
      factors[i * groups + k] = factor_of(norm, clipping.max_grad_norm[client[i] * groups + k], clipping);
      finite = finite && std::isfinite(norm);
    }
    if (!finite)
      for (ptrdiff_t k = 0; k < groups; ++k) factors[i * groups + k] = 0.0;
  });
  const std::vector<Block> blocks = column_blocks(clipping);
  parallel_for(blocks.size(), threads, [&](ptrdiff_t j) {
    const Block& block = blocks[j];
    WeightedRow waiting[4];
    int count = 0;
    for (ptrdiff_t i = 0; i < segments; ++i) {
      const double factor = factors[i * groups + block.group];
      if (factor > 0) waiting[count++] = {arena + i * arena_stride + block.first, factor};
      const bool same_client_follows = i + 1 < segments && client[i + 1] == client[i];
      if (count == 4 || (count > 0 && !same_client_follows)) {
        double* sum = total + client[i] * total_stride + block.first;
        dispatch<AddRows>(sum, static_cast<const WeightedRow*>(waiting), count, block.last - block.first);
        count = 0;
      }
    }
  });
}

}  // namespace ffalora
