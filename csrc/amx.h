// Products of bfloat16 by AMX: registers of 16 rows of 64 bytes (tiles), and an instruction that multiplies two of
// them.
//
// dot<C, A, B> adds A B to C [16,16] of float32; A holds [16,32] bfloat16, B the 32 rows of [32,16] in pairs: word
// (k, n) has rows 2k and 2k + 1 of column n. Even and odd rows are summed apart, then added. Subnormal numbers are
// taken as zero, as the dot instruction of bf16_dot.h takes them. Include contract.h first.
#pragma once

#include <type_traits>

#include "bf16_dot.h"

namespace ffalora {

// While it lives, this thread may use tiles; none outlive it, as nobody who calls expects to find any.
class TilesInUse {
 public:
  explicit TilesInUse(bool used) : used_(used) {
#ifdef FFALORA_AMX
    struct alignas(64) Shapes {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Shapes kShapes;
    if (used_) __asm__ volatile("ldtilecfg %0" : : "m"(kShapes));
#endif
  }
  ~TilesInUse() {
#ifdef FFALORA_AMX
    if (used_) __asm__ volatile("tilerelease");
#endif
  }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;

 private:
  [[maybe_unused]] bool used_;
};

#ifdef FFALORA_AMX

constexpr ptrdiff_t kTileRows = 16, kTileInner = 32;        // the sizes of the sums, and of what is summed over
constexpr ptrdiff_t kTileSums = kTileRows * kTileRows;      // float32 numbers of a tile
constexpr ptrdiff_t kTileNumbers = kTileRows * kTileInner;  // bfloat16 numbers of a tile
constexpr ptrdiff_t kTileBytes = 64;                        // of a row

template <int I>
FFALORA_INLINE void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(I));
}

// Rows `stride` bytes apart.
template <int I>
FFALORA_INLINE void load_tile(const void* from, ptrdiff_t stride) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(I), "r"(from), "r"(stride) : "memory");
}

template <int I>
FFALORA_INLINE void store_tile(float* to, ptrdiff_t stride) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(I), "r"(to), "r"(stride) : "memory");
}

template <int C, int A, int B>
FFALORA_INLINE void dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// Calls body with the integral constants 0 … COUNT-1.
template <int COUNT, class Body>
FFALORA_INLINE void for_tiles(const Body& body) {
  if constexpr (COUNT > 0) {
    for_tiles<COUNT - 1>(body);
    body(std::integral_constant<int, COUNT - 1>{});
  }
}

#endif

}  // namespace ffalora
