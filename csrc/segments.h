// What the operations on segments share: float32 copies of the narrow operands, and ways to cut the tokens into items.
#pragma once

#include <vector>

#include "kernels.h"
#include "threads.h"
#include "tile.h"

namespace ffalora {

struct Run {  // tokens first … last-1, all of one client
  ptrdiff_t first, last, client;
};

// Runs of at most `limit` tokens that cover all tokens; neighbouring segments of one client are joined.
inline std::vector<Run> token_runs(const Segments& segments, ptrdiff_t limit) {
  std::vector<Run> runs;
  for (ptrdiff_t i = 0; i < segments.count; ++i) {
    ptrdiff_t at = segments.offsets[i];
    const ptrdiff_t end = segments.offsets[i + 1];
    while (at < end) {
      if (runs.empty() || runs.back().client != segments.client[i] || runs.back().last - runs.back().first >= limit)
        runs.push_back({at, at, segments.client[i]});
      const ptrdiff_t room = limit - (runs.back().last - runs.back().first);
      at += end - at < room ? end - at : room;
      runs.back().last = at;
    }
  }
  return runs;
}

// Tokens first … last-1 of `from` as float32 [tokens, padded], columns beyond the last one zero.
template <class T>
void copy_rows(const Activations& from, ptrdiff_t first, ptrdiff_t last, ptrdiff_t padded, float* to) {
  for (ptrdiff_t m = first; m < last; ++m, to += padded) {
    const T* row = from.row<T>(m);
    for (ptrdiff_t r = 0; r < from.columns; ++r) to[r] = to_float(row[r]);
    for (ptrdiff_t r = from.columns; r < padded; ++r) to[r] = 0.0f;
  }
}

inline void copy_rows(const Activations& from, ptrdiff_t first, ptrdiff_t last, ptrdiff_t padded, float* to) {
  from.half ? copy_rows<bf16>(from, first, last, padded, to) : copy_rows<float>(from, first, last, padded, to);
}

// b of every client as float32 [clients, padded rank, padded columns], rank-major, padded by zeros.
struct Turned {
  const float* data;
  ptrdiff_t stride, client_stride;

  const float* client(ptrdiff_t c) const { return data + c * client_stride; }
};

template <class From>
void turn_client(const From* b, ptrdiff_t columns, ptrdiff_t rank, ptrdiff_t stride, float* to) {
  for (ptrdiff_t r = 0; r < padded_to(rank, kPad); ++r, to += stride) {
    const ptrdiff_t filled = r < rank ? columns : 0;
    for (ptrdiff_t n = 0; n < filled; ++n) to[n] = to_float(b[n * rank + r]);
    for (ptrdiff_t n = filled; n < stride; ++n) to[n] = 0.0f;
  }
}

inline Turned turn(const AdapterB& b, ptrdiff_t columns, ptrdiff_t rank, Scratch<float>& scratch, int threads) {
  // An odd number of cache lines a row: a power of two would put all rows into the same few sets of the cache.
  const ptrdiff_t stride = padded_to(columns, 32) + 16;
  Turned turned{nullptr, stride, stride * padded_to(rank, kPad)};
  float* data = scratch.get(b.clients * turned.client_stride);
  turned.data = data;
  parallel_for(b.clients, threads, [&](ptrdiff_t c) {
    float* to = data + c * turned.client_stride;
    if (b.half) {
      turn_client(static_cast<const bf16*>(b.data) + c * b.stride, columns, rank, stride, to);
    } else {
      turn_client(static_cast<const float*>(b.data) + c * b.stride, columns, rank, stride, to);
    }
  });
  return turned;
}

}  // namespace ffalora
