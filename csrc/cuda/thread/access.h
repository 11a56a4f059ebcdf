// Four neighbours of a row: how a thread reads and writes them, all at once where every row stands
// on a 16-byte boundary, one by one elsewhere.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ak {

constexpr int kQuad = 4;

// One instruction each, and no branch around it: a compiler may take a struct's load or store
// apart. Zeros where not `there`.
__device__ __forceinline__ float4 load_whole(const float4* from, bool there) {
#if defined(__CUDA_ARCH__)
  float4 four;
  asm volatile(
      "{.reg .pred p; setp.ne.u32 p, %5, 0; mov.f32 %0, 0f00000000; mov.f32 %1, 0f00000000; "
      "mov.f32 %2, 0f00000000; mov.f32 %3, 0f00000000; @p ld.global.v4.f32 {%0, %1, %2, %3}, [%4];}"
      : "=&f"(four.x), "=&f"(four.y), "=&f"(four.z), "=&f"(four.w)
      : "l"(from), "r"(static_cast<uint32_t>(there))
      : "memory");
  return four;
#else
  return there ? *from : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#endif
}

__device__ __forceinline__ uint2 load_whole(const uint2* from, bool there) {
#if defined(__CUDA_ARCH__)
  uint2 two;
  asm volatile(
      "{.reg .pred p; setp.ne.u32 p, %3, 0; mov.u32 %0, 0; mov.u32 %1, 0; "
      "@p ld.global.v2.u32 {%0, %1}, [%2];}"
      : "=&r"(two.x), "=&r"(two.y)
      : "l"(from), "r"(static_cast<uint32_t>(there))
      : "memory");
  return two;
#else
  return there ? *from : make_uint2(0u, 0u);
#endif
}

__device__ __forceinline__ void store_whole(float4 from, float* to) {
#if defined(__CUDA_ARCH__)
  __stwb(reinterpret_cast<float4*>(to), from);
#else
  *reinterpret_cast<float4*>(to) = from;
#endif
}

__device__ __forceinline__ void store_whole(uint2 from, uint16_t* to) {
#if defined(__CUDA_ARCH__)
  __stwb(reinterpret_cast<uint2*>(to), from);
#else
  *reinterpret_cast<uint2*>(to) = from;
#endif
}

// `n` of them exist: of an aligned row all or none.
template <bool kAligned>
__device__ __forceinline__ void load(const float* from, int n, float (&to)[kQuad]) {
  if constexpr (kAligned) {
    const float4 four = load_whole(reinterpret_cast<const float4*>(from), n > 0);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) to[j] = j < n ? from[j] : 0.0f;
  }
}

template <bool kAligned>
__device__ __forceinline__ void store(const float (&from)[kQuad], int n, float* to) {
  if constexpr (kAligned) {
    if (n > 0) store_whole(make_float4(from[0], from[1], from[2], from[3]), to);
  } else {
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (j < n) to[j] = from[j];
  }
}

}  // namespace ak
