// Standard normal noise of a stochastic solver: a function of (seed, step, element) alone, so a
// sample's noise depends neither on the batch nor on its place in it. Philox 4x32-10 (Salmon et
// al., SC 2011) with key = seed and counter = (element / 4, step), then Box-Muller.
#pragma once

#include <cmath>

#include "step.h"

namespace ak {

struct Quad {
  uint32_t v[4];
};

AK_HD Quad philox(uint64_t seed, uint64_t quad, uint32_t step) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  Quad c = {{static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32), step, 0u}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c.v[0];
    const uint64_t b = 0xCD9E8D57ull * c.v[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.v[1] ^ k0, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.v[3] ^ k1, static_cast<uint32_t>(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// The middle of one of 2^23 equal cells of (0, 1): exact in float32 and never 0 or 1.
AK_HD float uniform(uint32_t bits) { return (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-23f; }

// Four normal deviates for elements 4 quad .. 4 quad + 3.
AK_HD void normal4(uint64_t seed, uint64_t quad, uint32_t step, float out[4]) {
  const Quad bits = philox(seed, quad, step);
  for (int pair = 0; pair < 2; ++pair) {
    const float radius = std::sqrt(-2.0f * std::log(uniform(bits.v[2 * pair])));
    const float angle = 6.28318530717958647692f * uniform(bits.v[2 * pair + 1]);
    out[2 * pair] = radius * std::cos(angle);
    out[2 * pair + 1] = radius * std::sin(angle);
  }
}

}  // namespace ak
