// Four neighbours of a network's row, in the network's dtype.
#pragma once

#include "cuda/thread/access.h"
#include "cuda/thread/convert.h"
#include "op/args.h"

namespace ak {

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
