// Four neighbours of a row: how a thread reads and writes them, 16 bytes at a time (8 of a 16-bit
// type) where every row stands on a 16-byte boundary, one by one elsewhere.
#pragma once

#include "cuda/thread/convert.h"
#include "cuda/variant.h"

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

// Four elements of a network's row as they lie in memory. They are converted only when used, so
// that every load is under way before.
template <typename T>
struct Packed;

template <>
struct Packed<float> {
  float v[kQuad];

  __device__ __forceinline__ void load(const void* row, ScalarType, int64_t at, int n) {
    ak::load<true>(static_cast<const float*>(row) + at, n, v);
  }

  __device__ __forceinline__ void unpack(ScalarType, float (&to)[kQuad]) const {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) to[j] = v[j];
  }

  static __device__ __forceinline__ Packed pack(ScalarType, const float (&from)[kQuad]) {
    return {{from[0], from[1], from[2], from[3]}};
  }

  __device__ __forceinline__ void store(void* row, ScalarType, int64_t at, int n) const {
    ak::store<true>(v, n, static_cast<float*>(row) + at);
  }
};

// Of a 16-bit type.
template <typename T>
struct PackedHalves {
  uint2 words;

  __device__ __forceinline__ void load(const void* row, ScalarType, int64_t at, int n) {
    words =
        load_whole(reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(row) + at), n > 0);
  }

  static __device__ __forceinline__ PackedHalves pack(ScalarType, const float (&from)[kQuad]) {
    return {make_uint2(ak::pack(from[0], from[1], T()), ak::pack(from[2], from[3], T()))};
  }

  __device__ __forceinline__ void store(void* row, ScalarType, int64_t at, int n) const {
    if (n > 0) store_whole(words, static_cast<uint16_t*>(row) + at);
  }
};

template <>
struct Packed<BFloat16> : PackedHalves<BFloat16> {
  Packed() = default;
  __device__ __forceinline__ Packed(const PackedHalves<BFloat16>& other)
      : PackedHalves<BFloat16>(other) {}

  __device__ __forceinline__ void unpack(ScalarType, float (&to)[kQuad]) const {
    to[0] = from_bits(words.x << 16), to[1] = from_bits(words.x & 0xffff0000u);
    to[2] = from_bits(words.y << 16), to[3] = from_bits(words.y & 0xffff0000u);
  }
};

template <>
struct Packed<Half> : PackedHalves<Half> {
  Packed() = default;
  __device__ __forceinline__ Packed(const PackedHalves<Half>& other) : PackedHalves<Half>(other) {}

  __device__ __forceinline__ void unpack(ScalarType, float (&to)[kQuad]) const {
    to[0] = unpack_half(static_cast<uint16_t>(words.x));
    to[1] = unpack_half(static_cast<uint16_t>(words.x >> 16));
    to[2] = unpack_half(static_cast<uint16_t>(words.y));
    to[3] = unpack_half(static_cast<uint16_t>(words.y >> 16));
  }
};

// Of a type that only the launch knows, one by one, in a word each.
template <>
struct Packed<void> {
  uint32_t w[kQuad];

  __device__ __forceinline__ void load(const void* row, ScalarType type, int64_t at, int n) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      w[j] = 0u;
      if (j >= n) continue;
      if (type == ScalarType::Float)
        w[j] = static_cast<const uint32_t*>(row)[at + j];
      else
        w[j] = static_cast<const uint16_t*>(row)[at + j];
    }
  }

  __device__ __forceinline__ void unpack(ScalarType type, float (&to)[kQuad]) const {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      if (type == ScalarType::Float)
        to[j] = from_bits(w[j]);
      else if (type == ScalarType::Half)
        to[j] = unpack_half(static_cast<uint16_t>(w[j]));
      else
        to[j] = from_bits(w[j] << 16);
    }
  }

  static __device__ __forceinline__ Packed pack(ScalarType type, const float (&from)[kQuad]) {
    Packed packed;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      if (type == ScalarType::Float)
        packed.w[j] = to_bits(from[j]);
      else if (type == ScalarType::Half)
        packed.w[j] = ak::pack(from[j], 0.0f, Half());
      else
        packed.w[j] = ak::pack(from[j], 0.0f, BFloat16());
    }
    return packed;
  }

  __device__ __forceinline__ void store(void* row, ScalarType type, int64_t at, int n) const {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      if (j >= n) continue;
      if (type == ScalarType::Float)
        static_cast<uint32_t*>(row)[at + j] = w[j];
      else
        static_cast<uint16_t*>(row)[at + j] = static_cast<uint16_t>(w[j]);
    }
  }
};

}  // namespace ak
