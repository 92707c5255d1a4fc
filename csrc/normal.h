// Two normals from two uniforms (Box and Muller 1958), without branches, so that loops over it vectorise; without
// contraction, so that processors and GPUs agree bit for bit. Polynomials for log, sine and cosine are those of fdlibm
// (Sun Microsystems 1993), which are accurate to a unit in the last place on the reduced arguments used here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FFALORA_SHARED __host__ __device__ inline
#else
#define FFALORA_SHARED inline __attribute__((always_inline))
#endif

namespace ffalora {

FFALORA_SHARED uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

FFALORA_SHARED double double_of(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// An integer below 2^52 as a double.
FFALORA_SHARED double small_integer(uint64_t n) { return double_of(n | 0x4330000000000000u) - 0x1p52; }

// log(u) for normal u in (0, 1]: u = 2^-e m with m in [√½, √2), log m from the series in (m-1)/(m+1).
FFALORA_SHARED double log_unit(double u) {
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdu, kUnderOne = 0xfffffffffffffu;  // bits of √½; 2^52 - 1
  const uint64_t e = (kRootHalf + kUnderOne - bits_of(u)) >> 52;
  const double m = double_of(bits_of(u) + (e << 52));
  const double f = m - 1.0, half = 0.5 * f * f, s = f / (2.0 + f), z = s * s, w = z * z;
  const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd =
      z * (6.666666666666735130e-01 +
           w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const double exponent = -small_integer(e);
  constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  return exponent * kLn2High - ((half - (s * (half + (even + odd)) + exponent * kLn2Low)) - f);
}

struct Pair {
  double first, second;
};

// cos(2πt) and sin(2πt) for t in [0, 1]: the nearest quarter turn is taken off exactly.
FFALORA_SHARED Pair cos_sin_turn(double t) {
  const double shifted = 4.0 * t + 0x1.8p52;
  const uint64_t quarter = bits_of(shifted);
  const double x = (t - 0.25 * (shifted - 0x1.8p52)) * 6.283185307179586477, z = x * x;
  const double sine = x + x * z *
                              (-1.66666666666666324348e-01 +
                               z * (8.33333333332248946124e-03 +
                                    z * (-1.98412698298579493134e-04 +
                                         z * (2.75573137070700676789e-06 +
                                              z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
  const double cosine =
      1.0 - (0.5 * z - z * z *
                           (4.16666666666666019037e-02 +
                            z * (-1.38888888888741095749e-03 +
                                 z * (2.48015872894767294178e-05 +
                                      z * (-2.75573143513906633035e-07 +
                                           z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11))))));
  // Swap on odd quarters; the cosine is negative on quarters 1 and 2, the sine on 2 and 3.
  const uint64_t odd = 0 - (quarter & 1);
  const uint64_t c = (bits_of(sine) & odd) | (bits_of(cosine) & ~odd);
  const uint64_t s = (bits_of(cosine) & odd) | (bits_of(sine) & ~odd);
  return {double_of(c ^ (((quarter + 1) & 2) << 62)), double_of(s ^ ((quarter & 2) << 62))};
}

// u in (0, 1] gives the radius, turn in [0, 1] the angle.
FFALORA_SHARED Pair box_muller(double u, double turn) {
  const double radius = sqrt(-2.0 * log_unit(u));
  const Pair direction = cos_sin_turn(turn);
  return {radius * direction.first, radius * direction.second};
}

}  // namespace ffalora
