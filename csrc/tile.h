// Leaf functions of the small matrix products: register blocks of a few ranks by two vectors of columns.
//
// `narrow [tokens, padded]` is float32 with its columns padded to a multiple of kPad by zeros; `wide [tokens, width]`
// is the large tensor, read once. Sums run over tokens in order within a chunk, and over chunks in order, so the bits
// of a segment's result depend on that segment alone. Include contract.h first.
#pragma once

#include "simd.h"

namespace ffalora {

constexpr int kPad = 8;
template <int L>
constexpr int kRanks = L == 16 ? 8 : 4;  // ranks held in registers at once

// Holds a vector that is used several times in a register, where the compiler would load it once a use.
template <class V>
FFALORA_INLINE void keep(V& v) {
#ifdef FFALORA_WIDE_ASSEMBLY
  if constexpr (sizeof(V) == 64) __asm__("" : "+v"(v));
#endif
}

inline ptrdiff_t padded_to(ptrdiff_t n, ptrdiff_t multiple) { return (n + multiple - 1) / multiple * multiple; }

constexpr ptrdiff_t kChunkTokens = 128;  // at most this many tokens in a chunk

// One chunk of tokens of one segment, for a range of wide columns: target[n, r] = scale Σ_m wide[m, n] narrow[m, r].
template <class T>
struct GradientChunk {
  const T* wide;
  ptrdiff_t wide_stride, width;
  const float* narrow;
  ptrdiff_t padded, rank, tokens;
  float* partial;    // sums of the chunks before; unused when this chunk is first and last
  bool first, last;  // of its segment
  float scale;
  float* target;
  ptrdiff_t rank_stride;  // of the target [rank, width], columns contiguous; a target [width, rank] has none
  bool accumulate;
  double* square;  // receives Σ target² when last
};

// Floats that `partial` must hold for a range of `width` columns.
inline size_t partial_size(ptrdiff_t width, ptrdiff_t rank) { return padded_to(width, 64) * padded_to(rank, 16); }

// Scales V lanes, adds them to `count` numbers at `to`, and squares what was stored.
template <int V, class Chunk>
FFALORA_INLINE void emit(const Chunk& c, Vec<float, V> sum, float* to, ptrdiff_t count, Vec<double, V>& square) {
  Vec<float, V> stored = sum * c.scale;
  if (count >= V) {
    if (c.accumulate) stored += load<V>(to);
    store<V>(to, stored);
  } else {
    Vec<float, V> kept{};
    for (ptrdiff_t i = 0; i < count; ++i) {
      kept[i] = c.accumulate ? to[i] + stored[i] : stored[i];
      to[i] = kept[i];
    }
    stored = kept;
  }
  const auto wide = __builtin_convertvector(stored, Vec<double, V>);
  square += wide * wide;
}

// The lines of a rank-contiguous target that a panel will write: fetching them takes as long as the panel's products.
template <class T>
FFALORA_INLINE void prefetch_target(const GradientChunk<T>& c, ptrdiff_t n, ptrdiff_t columns) {
  const float* first = c.target + n * c.rank;
  for (ptrdiff_t at = 0; at < columns * c.rank; at += 16) __builtin_prefetch(first + at, 1);
}

// The same for a target whose columns are contiguous: those of `ranks` ranks from r on.
template <class T>
FFALORA_INLINE void prefetch_rows(const GradientChunk<T>& c, ptrdiff_t n, ptrdiff_t columns, ptrdiff_t r,
                                  ptrdiff_t ranks) {
  const float* row = c.target + n + r * c.rank_stride;
  for (ptrdiff_t i = 0; i < ranks; ++i, row += c.rank_stride)
    for (ptrdiff_t at = 0; at < columns; at += 16) __builtin_prefetch(row + at, 1);
}

// Products of wide and narrow in float32 lanes, whatever the activations are.
template <class T>
struct FloatProducts {
  static constexpr ptrdiff_t kPackedBytes = kChunkTokens * 32 * 4;

  template <int L>
  FFALORA_INLINE static void add(const GradientChunk<T>& c, ptrdiff_t n, ptrdiff_t r,
                                 Vec<float, L> (&sum)[2][kRanks<L>]) {
    add_rows<L>(c.wide + n, c.wide_stride, c, r, sum);
  }

  template <int L>
  FFALORA_INLINE static void add_packed(const GradientChunk<T>& c, const void* packed, ptrdiff_t r,
                                        Vec<float, L> (&sum)[2][kRanks<L>]) {
    add_rows<L>(static_cast<const float*>(packed), 2 * L, c, r, sum);
  }

  template <int L>
  FFALORA_INLINE static void pack(const GradientChunk<T>& c, ptrdiff_t n, ptrdiff_t columns, void* packed) {
    auto* to = static_cast<float*>(packed);
    for (ptrdiff_t m = 0; m < c.tokens; ++m, to += 2 * L) {
      const T* from = c.wide + m * c.wide_stride + n;
      for (ptrdiff_t at = 2 * L; at < 4 * L; at += 64 / sizeof(T)) __builtin_prefetch(from + at);
      if (columns == 2 * L) {
        store<L>(to, load<L>(from));
        store<L>(to + L, load<L>(from + L));
      } else {
        for (ptrdiff_t j = 0; j < 2 * L; ++j) to[j] = j < columns ? to_float(from[j]) : 0.0f;
      }
    }
  }

 private:
  template <int L, class W>
  FFALORA_INLINE static void add_rows(const W* wide, ptrdiff_t stride, const GradientChunk<T>& c, ptrdiff_t r,
                                      Vec<float, L> (&sum)[2][kRanks<L>]) {
    for (ptrdiff_t m = 0; m < c.tokens; ++m) {
      const Vec<float, L> w0 = load<L>(wide + m * stride), w1 = load<L>(wide + m * stride + L);
      __builtin_prefetch(wide + m * stride + 2 * L);
      if (sizeof(W) == 4) __builtin_prefetch(wide + m * stride + 3 * L);
      for (int i = 0; i < kRanks<L>; ++i) {
        const float x = c.narrow[m * c.padded + r + i];
        sum[0][i] += w0 * x;
        sum[1][i] += w1 * x;
      }
    }
  }
};

template <class T, class Products = FloatProducts<T>>
struct Gradient {
  template <int L>
  FFALORA_INLINE static void run(const GradientChunk<T>* chunk) {
    constexpr int B = kRanks<L>;
    constexpr int kColumns = 2 * L;
    const GradientChunk<T>& c = *chunk;
    Vec<double, L> square{};
    float* partial = c.partial;
    alignas(64) char packed[Products::kPackedBytes];
    for (ptrdiff_t n = 0; n < c.width; n += kColumns) {
      const ptrdiff_t columns = c.width - n < kColumns ? c.width - n : kColumns;
      // Packed, the panel is read again for each block of ranks; a narrow one is padded by zeros.
      const bool pack = c.rank > B || columns < kColumns;
      if (pack) Products::template pack<L>(c, n, columns, packed);
      for (ptrdiff_t r = 0; r < c.rank; r += B) {
        Vec<float, L> sum[2][B];
        for (auto& half : sum)
          for (auto& v : half) v = Vec<float, L>{};
        if (c.last) prefetch_rows(c, n, columns, r, c.rank - r < B ? c.rank - r : B);
        if (pack) {
          Products::template add_packed<L>(c, packed, r, sum);
        } else {
          Products::template add<L>(c, n, r, sum);
        }
        if (!(c.first && c.last)) {
          for (auto& half : sum)
            for (auto& v : half) {
              if (!c.first) v += load<L>(partial);
              if (!c.last) store<L>(partial, v);
              partial += L;
            }
        }
        if (c.last) finish<L>(c, sum, n, columns, r, square);
      }
    }
    if (!c.last) return;
    double total = 0;
    for (int i = 0; i < L; ++i) total += square[i];
    *c.square = total;
  }

 private:
  template <int L, int B>
  FFALORA_INLINE static void finish(const GradientChunk<T>& c, Vec<float, L> (&sum)[2][B], ptrdiff_t n,
                                    ptrdiff_t columns, ptrdiff_t r, Vec<double, L>& square) {
    const ptrdiff_t ranks = c.rank - r < B ? c.rank - r : B;
    float* target = c.target + n + r * c.rank_stride;
    for (int half = 0; half < 2; ++half, target += L) {
      const ptrdiff_t left = columns - half * L;
      if (left <= 0) return;
      for (ptrdiff_t i = 0; i < ranks; ++i) emit<L>(c, sum[half][i], target + i * c.rank_stride, left, square);
    }
  }
};

}  // namespace ffalora
