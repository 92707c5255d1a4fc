// Vectors of L lanes, loads and stores of float32 and bfloat16, and the choice of instruction set at run time.
//
// A leaf function is a struct with `template <int L> static void run(...)`. dispatch<Leaf>(...) calls it compiled for
// AVX-512 (16 lanes), AVX2 with FMA (8) or the baseline (4), whichever the processor has. Unlike target_clones this
// gives each instruction set its own lane count and register blocking, needs no ifunc, and lets a test run all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define FFALORA_X86 1
#endif
// Inline assembly for wider registers than the whole file is compiled for: GCC takes it where the code is inlined into
// a function that has them, Clang nowhere. Clang's builds have no bfloat16 dot instruction, so their level ends below.
#if defined(FFALORA_X86) && !defined(__clang__)
#define FFALORA_WIDE_ASSEMBLY 1
#if __GNUC__ >= 10
#define FFALORA_BF16_DOT 1
#endif
#if __GNUC__ >= 11 && defined(__linux__)
#define FFALORA_AMX 1
#endif
#endif
#define FFALORA_INLINE inline __attribute__((always_inline))
// INDEPENDENT: before a loop whose iterations do not depend on each other. UNROLL: before a short loop over vectors
// that are to stay in registers.
#if defined(__clang__)
#define FFALORA_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define FFALORA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FFALORA_INDEPENDENT _Pragma("GCC ivdep")
#define FFALORA_UNROLL _Pragma("GCC unroll 16")
#endif

namespace ffalora {

enum Level { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };

Level detected_level();
Level level();               // detected_level() unless a test lowered it
bool set_level(int wanted);  // false where the processor lacks it
bool amx();                  // whether AMX's instructions are used
bool set_amx(bool always);   // also where the processor lacks them (tests); false where this build has none

inline int lanes() { return level() >= kAvx512 ? 16 : level() == kAvx2 ? 8 : 4; }  // of the leaf that dispatch calls

#ifdef FFALORA_X86
template <class Leaf, class... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void run_avx512(Args... args) {
  Leaf::template run<16>(args...);
}
template <class Leaf, class... Args>
__attribute__((target("avx2,fma"))) void run_avx2(Args... args) {
  Leaf::template run<8>(args...);
}
#endif

template <class Leaf, class... Args>
void dispatch(Args... args) {
#ifdef FFALORA_X86
  if (level() >= kAvx512) return run_avx512<Leaf>(args...);
  if (level() == kAvx2) return run_avx2<Leaf>(args...);
#endif
  Leaf::template run<4>(args...);
}

struct bf16 {
  uint16_t bits;
};

template <class T, int L>
struct Lanes {
  typedef T type __attribute__((vector_size(sizeof(T) * L)));
};
template <class T, int L>
using Vec = typename Lanes<T, L>::type;

template <class To, class From>
FFALORA_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <int L>
FFALORA_INLINE Vec<float, L> load(const float* at) {
  Vec<float, L> v;
  std::memcpy(&v, at, sizeof(v));
  return v;
}

template <int L>
FFALORA_INLINE Vec<float, L> load(const bf16* at) {
  Vec<uint16_t, L> half;
  std::memcpy(&half, at, sizeof(half));
#ifdef FFALORA_WIDE_ASSEMBLY
  // GCC 12 converts a vector by halves.
  if constexpr (L == 16) {
    Vec<uint32_t, L> words;
    __asm__("vpmovzxwd %1, %0" : "=v"(words) : "v"(half));
    return bit_cast<Vec<float, L>>(words << 16);
  }
#endif
  return bit_cast<Vec<float, L>>(__builtin_convertvector(half, Vec<uint32_t, L>) << 16);
}

template <int L>
FFALORA_INLINE void store(float* at, const Vec<float, L>& v) {
  std::memcpy(at, &v, sizeof(v));
}

// v rounded to bfloat16, to nearest, ties to even, in the high half of each word; a NaN stays one (as torch's
// conversion does). The low halves are left to be cut off.
template <int L>
FFALORA_INLINE Vec<uint32_t, L> rounded_high(const Vec<float, L>& v) {
  const auto x = bit_cast<Vec<uint32_t, L>>(v);
  const Vec<uint32_t, L> nan = Vec<uint32_t, L>{} + 0x7fc00000u;
  return (x & 0x7fffffffu) > 0x7f800000u ? nan : x + 0x7fffu + ((x >> 16) & 1u);
}

template <int L>
FFALORA_INLINE void store(bf16* at, const Vec<float, L>& v) {
  const auto half = __builtin_convertvector(rounded_high<L>(v) >> 16, Vec<uint16_t, L>);
  std::memcpy(at, &half, sizeof(half));
}

FFALORA_INLINE float to_float(float x) { return x; }
FFALORA_INLINE float to_float(bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

FFALORA_INLINE void from_float(float x, float* to) { *to = x; }
FFALORA_INLINE void from_float(float x, bf16* to) {
  const auto u = bit_cast<uint32_t>(x);
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
  to->bits = nan ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// The even lanes, then the odd ones.
template <int L>
FFALORA_INLINE Vec<float, L> even_then_odd(const Vec<float, L>& v) {
#if defined(__clang__)
  if constexpr (L == 16) {
    return __builtin_shufflevector(v, v, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  } else if constexpr (L == 8) {
    return __builtin_shufflevector(v, v, 0, 2, 4, 6, 1, 3, 5, 7);
  } else {
    return __builtin_shufflevector(v, v, 0, 2, 1, 3);
  }
#else
  Vec<int32_t, L> from{};
  for (int i = 0; i < L; ++i) from[i] = 2 * i % L + 2 * i / L;
  return __builtin_shuffle(v, from);
#endif
}

}  // namespace ffalora
