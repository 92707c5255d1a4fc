// Leaf functions of attention inside one sample, for one head of keys and values and the queries that share it, all in
// float32. Include contract.h first.
//
// Queries are taken kQueries at a time: scores, their exponentials and the products with values (backward: the
// gradients) stay in the cache. Everything is one small product of matrices; what a sample gets depends on it alone.
#pragma once

#include <cmath>

#include "exponential.h"
#include "kernels.h"
#include "tile.h"

namespace ffalora {

constexpr ptrdiff_t kQueries = 64;

// c [rows, columns] = (or +=) Σ_t a(i, t) b[t, columns]; columns are a multiple of L.
struct SmallProduct {
  const float* a;
  ptrdiff_t a_row, a_inner;
  const float* b;
  ptrdiff_t b_row, inner;
  float* c;
  ptrdiff_t c_row, rows, columns;
  bool add;
};

template <int L, int ROWS, int VECTORS>
FFALORA_INLINE void small_tile(const SmallProduct& p, ptrdiff_t i, ptrdiff_t j) {
  Vec<float, L> sum[ROWS][VECTORS] = {};
  const float *a = p.a + i * p.a_row, *b = p.b + j;
  for (ptrdiff_t t = 0; t < p.inner; ++t, a += p.a_inner, b += p.b_row) {
    Vec<float, L> factors[VECTORS];
    for (int v = 0; v < VECTORS; ++v) factors[v] = load<L>(b + v * L);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += factors[v] * a[r * p.a_row];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      float* to = p.c + (i + r) * p.c_row + j + v * L;
      store<L>(to, p.add ? load<L>(to) + sum[r][v] : sum[r][v]);
    }
}

template <int L, int ROWS>
FFALORA_INLINE void small_rows(const SmallProduct& p, ptrdiff_t i) {
  ptrdiff_t j = 0;
  for (; j + 2 * L <= p.columns; j += 2 * L) small_tile<L, ROWS, 2>(p, i, j);
  if (j < p.columns) small_tile<L, ROWS, 1>(p, i, j);
}

template <int L>
FFALORA_INLINE void multiply(const SmallProduct& p) {
  constexpr int kRows = L == 16 ? 8 : 4;
  ptrdiff_t i = 0;
  for (; i + kRows <= p.rows; i += kRows) small_rows<L, kRows>(p, i);
  for (; i + kRows / 2 <= p.rows; i += kRows / 2) small_rows<L, kRows / 2>(p, i);
  for (; i < p.rows; ++i) small_rows<L, 1>(p, i);
}

// One sample and one head of keys and values.
template <class T>
struct SampleHead {
  const AttentionGradient* tensors;
  ptrdiff_t first, tokens, head;  // of keys and values
  float* scratch;                 // scratch_floats() of them
};

template <class T>
struct HeadWork {
  ptrdiff_t tokens, width, columns, padded;  // columns: tokens, padded: width, both up to whole vectors

  explicit HeadWork(ptrdiff_t tokens, ptrdiff_t width)
      : tokens(tokens), width(width), columns(padded_to(tokens, 16)), padded(padded_to(width, 16)) {}

  ptrdiff_t matrix() const { return tokens * padded; }
  ptrdiff_t turned() const { return width * columns; }
  ptrdiff_t scores() const { return kQueries * columns; }
  ptrdiff_t queries() const { return kQueries * padded; }
  ptrdiff_t floats() const { return 4 * matrix() + 2 * turned() + 2 * scores() + 3 * queries(); }

  // Rows `from …` of a head in float32, padded by zeros, times a factor.
  FFALORA_INLINE void copy(const Heads& from, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t head, float factor,
                           float* to) const {
    for (ptrdiff_t m = 0; m < rows; ++m, to += padded) {
      const T* row = from.row<const T>(first + m, head);
      FFALORA_INDEPENDENT
      for (ptrdiff_t c = 0; c < width; ++c) to[c] = to_float(row[c]) * factor;
      for (ptrdiff_t c = width; c < padded; ++c) to[c] = 0.0f;
    }
  }

  FFALORA_INLINE void turn(const float* rows, float* to) const {
    for (ptrdiff_t c = 0; c < width; ++c, to += columns) {
      FFALORA_INDEPENDENT
      for (ptrdiff_t j = 0; j < tokens; ++j) to[j] = rows[j * padded + c];
      for (ptrdiff_t j = tokens; j < columns; ++j) to[j] = 0.0f;
    }
  }

  FFALORA_INLINE void write(const float* rows, ptrdiff_t count, const Heads& into, ptrdiff_t first, ptrdiff_t head,
                            float factor) const {
    for (ptrdiff_t m = 0; m < count; ++m, rows += padded) {
      T* row = into.row<T>(first + m, head);
      FFALORA_INDEPENDENT
      for (ptrdiff_t c = 0; c < width; ++c) from_float(rows[c] * factor, row + c);
    }
  }
};

// How many keys query i sees.
FFALORA_INLINE ptrdiff_t seen(const Attention& t, ptrdiff_t i, ptrdiff_t tokens) { return t.causal ? i + 1 : tokens; }

// Scores of keys not seen become the lowest; returns the highest.
template <int L>
FFALORA_INLINE float highest(float* row, ptrdiff_t count, ptrdiff_t columns) {
  for (ptrdiff_t j = count; j < columns; ++j) row[j] = -kInfinity;
  auto peaks = spread<L>(-kInfinity);
  for (ptrdiff_t j = 0; j < columns; j += L) {
    const auto score = load<L>(row + j);
    peaks = score > peaks ? score : peaks;
  }
  float peak = -kInfinity;
  for (int i = 0; i < L; ++i) peak = peaks[i] > peak ? peaks[i] : peak;
  return peak;
}

// Scores become e^(score - shift); returns their sum.
template <int L>
FFALORA_INLINE float exponentials(float* row, ptrdiff_t columns, float shift) {
  Vec<float, L> sums{};
  for (ptrdiff_t j = 0; j < columns; j += L) {
    const auto e = exponential<L>(load<L>(row + j) - shift);
    sums += e;
    store<L>(row + j, e);
  }
  float sum = 0;
  for (int i = 0; i < L; ++i) sum += sums[i];
  return sum;
}

template <class T>
struct HeadForward {
  template <int L>
  FFALORA_INLINE static void run(const SampleHead<T>* sample) {
    const Attention& t = sample->tensors->forward;
    const HeadWork<T> work(sample->tokens, t.width);
    float* turned = sample->scratch;
    float* values = turned + work.turned();
    float* queries = values + work.matrix();
    float* scores = queries + work.queries();
    float* out = scores + work.scores();
    work.copy(t.k, sample->first, work.tokens, sample->head, 1.0f, values);
    work.turn(values, turned);
    work.copy(t.v, sample->first, work.tokens, sample->head, 1.0f, values);
    const ptrdiff_t group = t.heads / t.kv_heads;
    for (ptrdiff_t h = sample->head * group; h < (sample->head + 1) * group; ++h)
      for (ptrdiff_t at = 0; at < work.tokens; at += kQueries) {
        const ptrdiff_t rows = work.tokens - at < kQueries ? work.tokens - at : kQueries;
        work.copy(t.q, sample->first + at, rows, h, t.scale, queries);
        multiply<L>({queries, work.padded, 1, turned, work.columns, work.width, scores, work.columns, rows,
                     work.columns, false});
        for (ptrdiff_t i = 0; i < rows; ++i) {
          float* row = scores + i * work.columns;
          const float peak = highest<L>(row, seen(t, at + i, work.tokens), work.columns);
          const float sum = exponentials<L>(row, work.columns, peak), share = 1.0f / sum;
          t.normalisers[h * t.tokens + sample->first + at + i] = peak + std::log(sum);
          for (ptrdiff_t j = 0; j < work.columns; j += L) store<L>(row + j, load<L>(row + j) * share);
        }
        multiply<L>(
            {scores, work.columns, 1, values, work.padded, work.tokens, out, work.padded, rows, work.padded, false});
        work.write(out, rows, t.out, sample->first + at, h, 1.0f);
      }
  }
};

template <class T>
struct HeadBackward {
  template <int L>
  FFALORA_INLINE static void run(const SampleHead<T>* sample) {
    const AttentionGradient& g = *sample->tensors;
    const Attention& t = g.forward;
    const HeadWork<T> work(sample->tokens, t.width);
    float* keys = sample->scratch;
    float* dk = keys + work.matrix();
    float* dv = dk + work.matrix();
    float* turned_keys = dv + work.matrix();
    float* turned_values = turned_keys + work.turned();
    float* queries = turned_values + work.turned();
    float* dout = queries + work.queries();
    float* dq = dout + work.queries();
    float* weights = dq + work.queries();
    float* slopes = weights + work.scores();
    work.copy(t.v, sample->first, work.tokens, sample->head, 1.0f, keys);
    work.turn(keys, turned_values);
    work.copy(t.k, sample->first, work.tokens, sample->head, 1.0f, keys);
    work.turn(keys, turned_keys);
    std::memset(dk, 0, 2 * work.matrix() * sizeof(float));
    const ptrdiff_t group = t.heads / t.kv_heads;
    for (ptrdiff_t h = sample->head * group; h < (sample->head + 1) * group; ++h)
      for (ptrdiff_t at = 0; at < work.tokens; at += kQueries) {
        const ptrdiff_t rows = work.tokens - at < kQueries ? work.tokens - at : kQueries;
        work.copy(t.q, sample->first + at, rows, h, t.scale, queries);
        work.copy(g.dout, sample->first + at, rows, h, 1.0f, dout);
        multiply<L>({queries, work.padded, 1, turned_keys, work.columns, work.width, weights, work.columns, rows,
                     work.columns, false});
        multiply<L>({dout, work.padded, 1, turned_values, work.columns, work.width, slopes, work.columns, rows,
                     work.columns, false});
        for (ptrdiff_t i = 0; i < rows; ++i)
          slope<L>(weights + i * work.columns, slopes + i * work.columns, seen(t, at + i, work.tokens), work.columns,
                   t.normalisers[h * t.tokens + sample->first + at + i]);
        multiply<L>(
            {slopes, work.columns, 1, keys, work.padded, work.tokens, dq, work.padded, rows, work.padded, false});
        multiply<L>(
            {slopes, 1, work.columns, queries, work.padded, rows, dk, work.padded, work.tokens, work.padded, true});
        multiply<L>(
            {weights, 1, work.columns, dout, work.padded, rows, dv, work.padded, work.tokens, work.padded, true});
        work.write(dq, rows, g.dq, sample->first + at, h, t.scale);
      }
    work.write(dk, work.tokens, g.dk, sample->first, sample->head, 1.0f);
    work.write(dv, work.tokens, g.dv, sample->first, sample->head, 1.0f);
  }

 private:
  // Scores become weights; gradients of weights become those of scores.
  template <int L>
  FFALORA_INLINE static void slope(float* weights, float* slopes, ptrdiff_t count, ptrdiff_t columns,
                                   float normaliser) {
    for (ptrdiff_t j = count; j < columns; ++j) weights[j] = -kInfinity;
    exponentials<L>(weights, columns, normaliser);
    Vec<float, L> sums{};
    for (ptrdiff_t j = 0; j < columns; j += L) sums += load<L>(weights + j) * load<L>(slopes + j);
    float sum = 0;
    for (int i = 0; i < L; ++i) sum += sums[i];
    for (ptrdiff_t j = 0; j < columns; j += L) store<L>(slopes + j, load<L>(weights + j) * (load<L>(slopes + j) - sum));
  }
};

}  // namespace ffalora
