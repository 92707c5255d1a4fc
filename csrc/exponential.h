// The exponential of a vector. Include contract.h first.
#pragma once

#include <limits>

#include "simd.h"

namespace ffalora {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <int L>
FFALORA_INLINE Vec<float, L> spread(float x) {
  return x - Vec<float, L>{};
}

// e^x for x ≤ 60, 0 below -87, NaN for NaN: 2^n e^r with |r| ≤ ½ ln 2 and Taylor's polynomial, whose remainder is
// below half a unit in the last place.
template <int L>
FFALORA_INLINE Vec<float, L> exponential(const Vec<float, L>& x) {
  constexpr float kRound = 0x1.8p23f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  const auto shifted = x * 1.442695041f + kRound;
  const auto n = shifted - kRound;
  const auto r = (x - n * kLn2High) - n * kLn2Low;
  auto sum = r * (1.0f / 5040) + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * (r * r) + r + 1.0f;
  const auto power = bit_cast<Vec<float, L>>((bit_cast<Vec<uint32_t, L>>(shifted) + 127u) << 23);
  return x < -87.0f ? Vec<float, L>{} : sum * power;
}

}  // namespace ffalora
