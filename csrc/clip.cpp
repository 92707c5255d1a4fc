// clip_reduce_: clip factors from the norms, and the clipped sum of each client in float64.
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "contract.h"
#include "kernels.h"
#include "threads.h"

namespace ffalora {
namespace {

constexpr double kNormMargin = 1.0 + 0x1p-20;  // covers the rounding of the factor and of the clipped row
constexpr ptrdiff_t kBlockColumns = 8192;
constexpr ptrdiff_t kCacheBytes = 4 << 20;
constexpr int kRowsAtOnce = 8;

// Vectors of doubles have half the lanes, so that each is one register.
template <int L>
FFALORA_INLINE Vec<double, L / 2> load_double(const float* at) {
  return __builtin_convertvector(load<L / 2>(at), Vec<double, L / 2>);
}

// Σ row² in float64.
struct RowSquare {
  template <int L>
  FFALORA_INLINE static void run(const float* row, ptrdiff_t columns, double* result) {
    constexpr int kStep = L / 2, kSums = 8;
    Vec<double, kStep> sum[kSums];
    for (auto& v : sum) v = Vec<double, kStep>{};
    ptrdiff_t p = 0;
    for (; p + kSums * kStep <= columns; p += kSums * kStep) {
      FFALORA_UNROLL
      for (int part = 0; part < kSums; ++part) {
        const auto wide = load_double<L>(row + p + part * kStep);
        sum[part] += wide * wide;
      }
    }
    double total = 0;
    for (const auto& v : sum)
      for (int i = 0; i < kStep; ++i) total += v[i];
    for (; p < columns; ++p) total += static_cast<double>(row[p]) * row[p];
    *result = total;
  }
};

struct WeightedRow {
  const float* row;
  double factor;
};

// total += Σ factor · row over up to kRowsAtOnce rows, added in order.
struct AddRows {
  template <int L>
  FFALORA_INLINE static void run(double* total, const WeightedRow* rows, int count, ptrdiff_t columns) {
    if (count == kRowsAtOnce) return add<L, kRowsAtOnce>(total, rows, columns);
    for (; count >= 4; count -= 4, rows += 4) add<L, 4>(total, rows, columns);
    for (int i = 0; i < count; ++i) add<L, 1>(total, rows + i, columns);
  }

 private:
  template <int L, int ROWS>
  FFALORA_INLINE static void add(double* total, const WeightedRow* rows, ptrdiff_t columns) {
    constexpr int kStep = L / 2, kSums = 4;
    const float* row[ROWS];
    Vec<double, kStep> factor[ROWS];
    for (int i = 0; i < ROWS; ++i) {
      row[i] = rows[i].row;
      factor[i] = Vec<double, kStep>{} + rows[i].factor;
    }
    ptrdiff_t p = 0;
    for (; p + kSums * kStep <= columns; p += kSums * kStep) {
      Vec<double, kStep> sum[kSums];
      std::memcpy(sum, total + p, sizeof(sum));
      FFALORA_UNROLL
      for (int i = 0; i < ROWS; ++i) {
        for (int at = 0; at < kSums * kStep; at += 16) __builtin_prefetch(row[i] + p + kAhead + at);
        FFALORA_UNROLL
        for (int part = 0; part < kSums; ++part) sum[part] += load_double<L>(row[i] + p + part * kStep) * factor[i];
      }
      std::memcpy(total + p, sum, sizeof(sum));
    }
    for (; p < columns; ++p)
      for (int i = 0; i < ROWS; ++i) total[p] += rows[i].factor * rows[i].row[p];
  }

  static constexpr ptrdiff_t kAhead = 512;  // numbers between those in use and those asked of the memory
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

// Norms and factors of segment i; zero factors where a norm is not finite.
void weigh(const Clipping& clipping, ptrdiff_t i) {
  const ptrdiff_t groups = clipping.groups;
  const float* row = clipping.arena.row<const float>(i);
  const double* limits = clipping.max_grad_norm + clipping.client[i] * groups;
  double *factors = clipping.factors + i * groups, *norms = clipping.norms + i * groups;
  bool finite = true;
  for (ptrdiff_t k = 0; k < groups; ++k) {
    double square;
    if (clipping.squares != nullptr) {
      square = clipping.squares[i * groups + k];
    } else {
      const ptrdiff_t first = clipping.group_columns[k];
      dispatch<RowSquare>(row + first, clipping.group_columns[k + 1] - first, &square);
    }
    norms[k] = std::sqrt(square);
    factors[k] = factor_of(norms[k], limits[k], clipping);
    finite = finite && std::isfinite(norms[k]);
  }
  if (!finite)
    for (ptrdiff_t k = 0; k < groups; ++k) factors[k] = 0.0;
}

// Adds the clipped segments first … last-1 to the totals, in order, for one block of columns.
void add_block(const Clipping& clipping, ptrdiff_t first, ptrdiff_t last, const Block& block) {
  WeightedRow waiting[kRowsAtOnce];
  int count = 0;
  for (ptrdiff_t i = first; i < last; ++i) {
    const double factor = clipping.factors[i * clipping.groups + block.group];
    if (factor > 0) waiting[count++] = {clipping.arena.row<const float>(i) + block.first, factor};
    const bool same_client_follows = i + 1 < last && clipping.client[i + 1] == clipping.client[i];
    if (count == kRowsAtOnce || (count > 0 && !same_client_follows)) {
      double* sum = clipping.total.row<double>(clipping.client[i]) + block.first;
      dispatch<AddRows>(sum, static_cast<const WeightedRow*>(waiting), count, block.last - block.first);
      count = 0;
    }
  }
}

// A client without a row of the totals, or a column that there is not, would be read and written all the same.
void check_indices(const Clipping& clipping) {
  for (ptrdiff_t i = 0; i < clipping.segments; ++i)
    if (clipping.client[i] < 0 || clipping.client[i] >= clipping.clients)
      throw std::invalid_argument("client must lie in 0 … " + std::to_string(clipping.clients - 1) + ", but client[" +
                                  std::to_string(i) + "] is " + std::to_string(clipping.client[i]));
  ptrdiff_t least = 0;
  for (ptrdiff_t k = 0; k <= clipping.groups; ++k) {
    const ptrdiff_t column = clipping.group_columns[k];
    if (column < least || column > clipping.columns)
      throw std::invalid_argument("group_columns must ascend in 0 … " + std::to_string(clipping.columns) +
                                  ", but group_columns[" + std::to_string(k) + "] is " + std::to_string(column));
    least = column;
  }
}

}  // namespace

// Throws std::invalid_argument where client or group_columns point outside the matrices.
void clip_reduce(const Clipping& clipping, int threads) {
  check_indices(clipping);
  const ptrdiff_t columns = clipping.group_columns[clipping.groups] - clipping.group_columns[0];
  const std::vector<Block> blocks = column_blocks(clipping);
  // Where the norms are not given, a batch of rows is read for its norms and found in the cache for its sum.
  const bool given = clipping.squares != nullptr;
  const ptrdiff_t fitting = kCacheBytes / (columns > 0 ? columns * 4 : 1) / kRowsAtOnce * kRowsAtOnce;
  const ptrdiff_t batch = given ? clipping.segments : fitting < kRowsAtOnce ? kRowsAtOnce : fitting;
  for (ptrdiff_t first = 0; first < clipping.segments; first += batch) {
    const ptrdiff_t last = clipping.segments - first < batch ? clipping.segments : first + batch;
    parallel_for(last - first, given ? 1 : threads, [&](ptrdiff_t j) { weigh(clipping, first + j); });
    parallel_for(blocks.size(), threads, [&](ptrdiff_t j) { add_block(clipping, first, last, blocks[j]); });
  }
}

}  // namespace ffalora
