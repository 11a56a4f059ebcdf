// Standard normal noise of a stochastic solver: a function of (seed, step, element) alone, so a
// sample's noise depends neither on the batch nor on its place in it. Philox 4x32-10 (Salmon et
// al., SC 2011) with key = seed and counter = (element / 4, step), then Box-Muller.
//
// Logarithm, sine and cosine are polynomials here (least maximal error, fitted in float64): the
// libraries of two devices differ in the last place, and a sample must not depend on its device.
#pragma once

#include <cmath>

#include "core/bits.h"

namespace ak {

// Philox's four words of Q counters quad, quad + 1, ...: loops that a compiler turns into vector
// code.
template <int Q>
AK_HD void philox(uint64_t seed, uint64_t quad, uint32_t step, uint32_t (&c)[4][Q]) {
  for (int q = 0; q < Q; ++q) {
    c[0][q] = static_cast<uint32_t>(quad + q);
    c[1][q] = static_cast<uint32_t>((quad + q) >> 32);
    c[2][q] = step;
    c[3][q] = 0u;
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int q = 0; q < Q; ++q) {
      const uint64_t a = 0xD2511F53ull * c[0][q];
      const uint64_t b = 0xCD9E8D57ull * c[2][q];
      c[0][q] = static_cast<uint32_t>(b >> 32) ^ c[1][q] ^ k0;
      c[1][q] = static_cast<uint32_t>(b);
      c[2][q] = static_cast<uint32_t>(a >> 32) ^ c[3][q] ^ k1;
      c[3][q] = static_cast<uint32_t>(a);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// ln((w + 1/2) / 2^23) of the upper 23 bits w: the middle of one of 2^23 equal cells of (0, 1).
// Relative error 2^-23. With u = 2^e (1 + f), 1 + f in (0.7, 1.42], and a polynomial P,
// ln u = f - f^2 / 2 + f^3 P(f) + e ln 2, the last in two parts of which the first is exact.
AK_HD float log_uniform(uint32_t bits) {
  const float u = (static_cast<float>(static_cast<int32_t>(bits >> 9)) + 0.5f) * 0x1p-23f;
  // The exponent of u / sqrt(1/2), rounded down.
  const int32_t e = static_cast<int32_t>(to_bits(u) - 0x3f3504f3u) >> 23;
  const float f = from_bits(to_bits(u) - (static_cast<uint32_t>(e) << 23)) - 1.0f;
  float p = -0.07634493f;
  p = p * f + 0.12761575f;
  p = p * f - 0.13160183f;
  p = p * f + 0.14201759f;
  p = p * f - 0.16623357f;
  p = p * f + 0.20001227f;
  p = p * f - 0.2500082f;
  p = p * f + 0.3333333f;
  const float scale = static_cast<float>(e), square = f * f;
  const float small = p * f * square + scale * -2.1219444e-4f;
  return (small - 0.5f * square) + f + scale * 0.693359375f;
}

// cos and sin of 2 pi (w + 1/2) / 2^23 of the upper 23 bits w, to 2^-23. The angle is taken apart
// into the nearest quarter turn and a rest of at most an eighth of a turn, exactly.
AK_HD void cos_sin_uniform(uint32_t bits, float* cosine, float* sine) {
  const uint32_t w = bits >> 9, quarter = (w + (1u << 20)) >> 21;
  const float r = (static_cast<float>(static_cast<int32_t>(w - (quarter << 21))) + 0.5f) * 0x1p-21f;
  const float z = r * r;
  float c = 0.00090402167f, s = -0.004601658f;
  c = c * z - 0.020860288f;
  c = c * z + 0.25366923f;
  c = c * z - 1.2337005f;
  s = s * z + 0.07968003f;
  s = s * z - 0.6459635f;
  s = s * z + 1.5707964f;
  c = c * z + 1.0f;
  s = s * r;
  const float x = quarter & 1u ? s : c, y = quarter & 1u ? c : s;
  *cosine = (quarter + 1u) & 2u ? -x : x;
  *sine = quarter & 2u ? -y : y;
}

// Normal deviates of elements 4 quad .. 4 (quad + Q) - 1.
template <int Q>
AK_HD void normal(uint64_t seed, uint64_t quad, uint32_t step, float* out) {
  uint32_t bits[4][Q];
  philox(seed, quad, step, bits);
  for (int pair = 0; pair < 4; pair += 2)
    for (int q = 0; q < Q; ++q) {
      const float radius = std::sqrt(-2.0f * log_uniform(bits[pair][q]));
      float cosine, sine;
      cos_sin_uniform(bits[pair + 1][q], &cosine, &sine);
      out[4 * q + pair] = radius * cosine;
      out[4 * q + pair + 1] = radius * sine;
    }
}

}  // namespace ak
