// One instruction of the hardware where C++ takes a dozen: conversions of 16-bit numbers, the upper
// half of a product. The other branches are the same in C++, for older GPUs and for the tests.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "op/convert.h"

namespace ak {

// Two float32 to two 16-bit numbers in a word, the first in its lower half; to nearest even, NaN of
// the hardware's kind.
__device__ __forceinline__ uint32_t pack(float low, float high, BFloat16) {
#if __CUDA_ARCH__ >= 800
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  BFloat16 l, h;
  store(low, &l), store(high, &h);
  return l.x | static_cast<uint32_t>(h.x) << 16;
#endif
}

__device__ __forceinline__ uint32_t pack(float low, float high, Half) {
#if __CUDA_ARCH__ >= 800
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#elif defined(__CUDA_ARCH__)
  uint16_t l, h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(l) : "f"(low));
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(high));
  return l | static_cast<uint32_t>(h) << 16;
#else
  Half l, h;
  store(low, &l), store(high, &h);
  return l.x | static_cast<uint32_t>(h.x) << 16;
#endif
}

__device__ __forceinline__ float unpack_half(uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  return load(Half(bits, Half::from_bits()));
#endif
}

__device__ __forceinline__ uint32_t upper_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
#endif
}

}  // namespace ak
