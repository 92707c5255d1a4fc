// expand_: y[m] += scale · h[m] b_cᵀ, in place.
#include "amx_expand.h"
#include "contract.h"
#include "segments.h"

namespace ffalora {
namespace {

constexpr ptrdiff_t kRunTokens = 64;

// For a range of tokens: y[m, n] += scale Σ_r narrow[m, r] turned[r, n].
template <class T>
struct ExpandChunk {
  T* y;
  ptrdiff_t y_stride, width;
  const float* narrow;
  const float* turned;
  ptrdiff_t turned_stride, padded, rank, tokens;
  float scale;
};

template <class T>
struct Expand {
  template <int L>
  FFALORA_INLINE static void run(const ExpandChunk<T>* chunk) {
    ptrdiff_t m = 0;
    for (; m + 4 <= chunk->tokens; m += 4) rows<L, 4>(*chunk, m);
    for (; m < chunk->tokens; ++m) rows<L, 1>(*chunk, m);
  }

 private:
  template <int L, int ROWS>
  FFALORA_INLINE static void rows(const ExpandChunk<T>& c, ptrdiff_t m) {
    constexpr int kVectors = L == 16 ? 4 : 2;
    T* y = c.y + m * c.y_stride;
    const float* narrow = c.narrow + m * c.padded;
    ptrdiff_t n = 0;
    for (; n + kVectors * L <= c.width; n += kVectors * L) {
      // The same columns of the next rows come while these are worked on.
      for (int i = ROWS; i < 2 * ROWS; ++i)
        for (int at = 0; at < kVectors * L; at += 64 / static_cast<int>(sizeof(T)))
          __builtin_prefetch(y + i * c.y_stride + n + at, 1);
      tile<L, ROWS, kVectors>(c, y + n, c.y_stride, narrow, n);
    }
    for (; n + L <= c.width; n += L) tile<L, ROWS, 1>(c, y + n, c.y_stride, narrow, n);
    if (n == c.width) return;
    alignas(64) T edge[ROWS * L] = {};
    const size_t bytes = (c.width - n) * sizeof(T);
    for (int i = 0; i < ROWS; ++i) std::memcpy(edge + i * L, y + i * c.y_stride + n, bytes);
    tile<L, ROWS, 1>(c, edge, L, narrow, n);
    for (int i = 0; i < ROWS; ++i) std::memcpy(y + i * c.y_stride + n, edge + i * L, bytes);
  }

  template <int L, int ROWS, int VECTORS>
  FFALORA_INLINE static void tile(const ExpandChunk<T>& c, T* y, ptrdiff_t stride, const float* narrow, ptrdiff_t n) {
    Vec<float, L> sum[ROWS][VECTORS] = {};
    for (ptrdiff_t r = 0; r < c.rank; ++r) {
      Vec<float, L> t[VECTORS];
      for (int v = 0; v < VECTORS; ++v) t[v] = load<L>(c.turned + r * c.turned_stride + n + v * L);
      for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECTORS; ++v) sum[i][v] += t[v] * narrow[i * c.padded + r];
    }
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v) {
        T* to = y + i * stride + v * L;
        store<L>(to, load<L>(to) + sum[i][v] * c.scale);
      }
  }
};

template <class T>
void expand_run(const Activations& y, const Activations& h, const Turned& turned, const Run& run, float scale) {
  static thread_local Scratch<float> narrow_scratch;
  const ptrdiff_t padded = padded_to(h.columns, kPad);
  float* narrow = narrow_scratch.get(kRunTokens * padded);
  copy_rows(h, run.first, run.last, padded, narrow);
  const ExpandChunk<T> chunk{y.row<T>(run.first),       y.stride,      y.columns, narrow,
                             turned.client(run.client), turned.stride, padded,    h.columns,
                             run.last - run.first,      scale};
  dispatch<Expand<T>>(&chunk);
}

#ifdef FFALORA_BF16_DOT
// run(chunk) for runs of tokens, each with its client's words of b in `rows` rows.
template <class RunChunk>
void expand_by_dot(const Activations& y, const Activations& h, const AdapterB& b, const Segments& segments, float scale,
                   int threads, ptrdiff_t rows, const RunChunk& run_chunk) {
  static thread_local Scratch<uint32_t> word_scratch;
  const ptrdiff_t size = rows * ExpandWords::stride(y.columns);
  uint32_t* words = word_scratch.get(b.clients * size);
  const std::unique_ptr<bool[]> subnormal(new bool[b.clients]);
  const auto turn = [&](const auto* factors, ptrdiff_t c) {
    dispatch<ExpandWords>(factors + c * b.stride, y.columns, h.columns, rows, words + c * size, &subnormal[c]);
  };
  parallel_for(b.clients, threads, [&](ptrdiff_t c) {
    b.half ? turn(static_cast<const bf16*>(b.data), c) : turn(static_cast<const float*>(b.data), c);
  });
  const std::vector<Run> runs = token_runs(segments, kRunTokens);
  parallel_for(runs.size(), threads, [&](ptrdiff_t i) {
    const Run& run = runs[i];
    run_chunk(ExpandDotChunk{y.row<bf16>(run.first), y.stride, y.columns, h.row<const bf16>(run.first), h.stride,
                             h.columns, run.last - run.first, words + run.client * size, subnormal[run.client], scale});
  });
}
#endif

#ifdef FFALORA_AMX
void expand_run_by_amx(const ExpandDotChunk& chunk) {
  static thread_local Scratch<bf16> tile_scratch;
  bf16* tiles = tile_scratch.get(kRunTokens / kTileRows * AmxExpand::steps(chunk.rank) * kTileNumbers);
  AmxExpand::fill_tiles(chunk, tiles);
  const TilesInUse in_use(true);
  dispatch<AmxExpand>(&chunk, static_cast<const bf16*>(tiles));
}
#endif

}  // namespace

void expand(const Activations& y, const Activations& h, const AdapterB& b, const Segments& segments, float scale,
            int threads) {
#ifdef FFALORA_AMX
  if (y.half && amx())
    return expand_by_dot(y, h, b, segments, scale, threads, AmxExpand::steps(h.columns) * kTileInner / 2,
                         expand_run_by_amx);
#endif
#ifdef FFALORA_BF16_DOT
  if (y.half && bf16_dot())
    return expand_by_dot(y, h, b, segments, scale, threads, (h.columns + 1) / 2,
                         [](const ExpandDotChunk& chunk) { run_avx512<ExpandDot>(&chunk); });
#endif
  static thread_local Scratch<float> turned_scratch;
  const Turned turned = turn(b, y.columns, h.columns, turned_scratch, threads);
  const std::vector<Run> runs = token_runs(segments, kRunTokens);
  parallel_for(runs.size(), threads, [&](ptrdiff_t i) {
    y.half ? expand_run<bf16>(y, h, turned, runs[i], scale) : expand_run<float>(y, h, turned, runs[i], scale);
  });
}

}  // namespace ffalora
