// The products of tile.h by the processor's bfloat16 dot instruction (AVX512_BF16): two products of bfloat16 a lane,
// added in float32. It takes subnormal numbers (below 1.2e-38) as zero and needs both factors in bfloat16, so a float32
// b is rounded, as it is for a GPU's tensor cores. Include contract.h first.
#pragma once

#include "tile.h"

#if defined(FFALORA_X86) && (defined(__clang__) || __GNUC__ >= 10)
#define FFALORA_BF16_DOT 1
#endif

namespace ffalora {

inline bool bf16_dot() { return level() >= kAvx512Bf16; }

#ifdef FFALORA_BF16_DOT

// Inline assembly, since the code around it is compiled for several instruction sets.
FFALORA_INLINE void add_dot(Vec<float, 16>& sum, const Vec<uint16_t, 32>& x, const Vec<uint16_t, 32>& y) {
  Vec<float, 16> in_register = sum;
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(in_register) : "v"(x), "v"(y));
  sum = in_register;
}

FFALORA_INLINE Vec<uint16_t, 32> load_32(const bf16* from) {
  Vec<uint16_t, 32> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// Tokens in pairs: chunk.narrow holds words (narrow[2m, r], narrow[2m+1, r]), [⌈tokens/2⌉, padded].
struct DotProducts {
  static constexpr ptrdiff_t kPackedBytes = kChunkTokens * 32 * 2;

  template <int L>
  FFALORA_INLINE static void add(const GradientChunk<bf16>& c, ptrdiff_t n, ptrdiff_t r,
                                 Vec<float, L> (&sum)[2][kRanks<L>]) {
    for (ptrdiff_t m = 0; m < c.tokens; m += 2) {
      Vec<uint16_t, 32> pairs[2];
      interleave_rows(c, m, n, pairs);
      add_pair(pairs[0], pairs[1], c, m, r, sum);
    }
  }

  template <int L>
  FFALORA_INLINE static void add_packed(const GradientChunk<bf16>& c, const void* packed, ptrdiff_t r,
                                        Vec<float, L> (&sum)[2][kRanks<L>]) {
    const auto* pairs = static_cast<const bf16*>(packed);
    for (ptrdiff_t m = 0; m < c.tokens; m += 2)
      add_pair(load_32(pairs + m * 32), load_32(pairs + m * 32 + 32), c, m, r, sum);
  }

  template <int L>
  FFALORA_INLINE static void pack(const GradientChunk<bf16>& c, ptrdiff_t n, ptrdiff_t columns, void* packed) {
    auto* to = static_cast<bf16*>(packed);
    for (ptrdiff_t m = 0; m < c.tokens; m += 2) {
      if (columns == 32) {
        Vec<uint16_t, 32> pairs[2];
        interleave_rows(c, m, n, pairs);
        std::memcpy(to + m * 32, pairs, sizeof(pairs));
        continue;
      }
      for (ptrdiff_t j = 0; j < 32; ++j)
        for (int half = 0; half < 2; ++half) {
          const bool there = j < columns && m + half < c.tokens;
          to[m * 32 + 2 * j + half] = there ? c.wide[(m + half) * c.wide_stride + n + j] : bf16{0};
        }
    }
  }

 private:
  // Columns n … n+31 of tokens m and m+1 as 32 pairs; zeros stand for a token beyond the last.
  FFALORA_INLINE static void interleave_rows(const GradientChunk<bf16>& c, ptrdiff_t m, ptrdiff_t n,
                                             Vec<uint16_t, 32> (&pairs)[2]) {
    const bf16* row = c.wide + m * c.wide_stride + n;
    const Vec<uint16_t, 32> even = load_32(row);
    __builtin_prefetch(row + 32);
    Vec<uint16_t, 32> odd{};
    if (m + 1 < c.tokens) {
      odd = load_32(row + c.wide_stride);
      __builtin_prefetch(row + c.wide_stride + 32);
    }
    for (int half = 0; half < 2; ++half) {
#if defined(__clang__)
      for (int i = 0; i < 32; ++i) pairs[half][i] = i % 2 == 0 ? even[i / 2 + 16 * half] : odd[i / 2 + 16 * half];
#else
      Vec<uint16_t, 32> from{};
      for (int i = 0; i < 32; ++i) from[i] = i / 2 + 16 * half + 32 * (i % 2);
      pairs[half] = __builtin_shuffle(even, odd, from);
#endif
    }
  }

  FFALORA_INLINE static void add_pair(const Vec<uint16_t, 32>& low, const Vec<uint16_t, 32>& high,
                                      const GradientChunk<bf16>& c, ptrdiff_t m, ptrdiff_t r,
                                      Vec<float, 16> (&sum)[2][8]) {
    const auto* words = reinterpret_cast<const uint32_t*>(c.narrow) + m / 2 * c.padded + r;
    for (int i = 0; i < 8; ++i) {
      const auto pair = bit_cast<Vec<uint16_t, 32>>(Vec<uint32_t, 16>{} + words[i]);
      add_dot(sum[0][i], low, pair);
      add_dot(sum[1][i], high, pair);
    }
  }
};

// b in bfloat16, rank-major.
struct DotFactors {
  using Turned = bf16;
  template <int L>
  using Wide = Vec<uint16_t, 32>;
  template <int L>
  static constexpr int kColumns = 32;

  template <int L>
  FFALORA_INLINE static Wide<L> load_wide(const bf16* from) {
    return load_32(from);
  }
  template <int L>
  FFALORA_INLINE static Wide<L> load_turned(const bf16* from) {
    return load_32(from);
  }
  template <int L>
  FFALORA_INLINE static void add_product(Vec<float, L>& sum, const Wide<L>& w, const Wide<L>& t) {
    add_dot(sum, w, t);
  }
};

inline void run_gradient(const GradientChunk<bf16>& chunk) {
  if (bf16_dot()) return run_avx512<Gradient<bf16, DotProducts>>(&chunk);
  dispatch<Gradient<bf16>>(&chunk);
}

inline void run_input_gradient(const InputChunk<bf16>& chunk) {
  if (bf16_dot()) return run_avx512<InputGradient<bf16, DotFactors>>(&chunk);
  dispatch<InputGradient<bf16>>(&chunk);
}

#else

inline void run_gradient(const GradientChunk<bf16>& chunk) { dispatch<Gradient<bf16>>(&chunk); }
inline void run_input_gradient(const InputChunk<bf16>& chunk) { dispatch<InputGradient<bf16>>(&chunk); }

#endif

inline void run_gradient(const GradientChunk<float>& chunk) { dispatch<Gradient<float>>(&chunk); }
inline void run_input_gradient(const InputChunk<float>& chunk) { dispatch<InputGradient<float>>(&chunk); }

}  // namespace ffalora
