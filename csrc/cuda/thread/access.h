// A thread's elements: V neighbours, moved 16 bytes at a time where every row stands on a 16-byte
// boundary and holds a multiple of V, one by one elsewhere.
#pragma once

#include <cuda_runtime.h>

#include "op/args.h"
#include "op/convert.h"

namespace ak {

// A network's V elements as they lie in memory: the first V words of float32, the first V / 2 of a
// 16-bit type. They are converted only when used, so that every load is under way before.
template <int V>
struct Bits {
  uint32_t w[V];
};

template <int V>
__device__ __forceinline__ void load_words(const uint32_t* from, uint32_t (&to)[V]) {
  static_assert(V == 2 || V % 4 == 0, "8 or 16 bytes at a time");
  if constexpr (V == 2) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    to[0] = two.x, to[1] = two.y;
  } else {
#pragma unroll
    for (int j = 0; j < V; j += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(from + j);
      to[j] = four.x, to[j + 1] = four.y, to[j + 2] = four.z, to[j + 3] = four.w;
    }
  }
}

template <int V>
__device__ __forceinline__ void store_words(const uint32_t (&from)[V], uint32_t* to) {
  if constexpr (V == 2) {
    *reinterpret_cast<uint2*>(to) = make_uint2(from[0], from[1]);
  } else {
#pragma unroll
    for (int j = 0; j < V; j += 4)
      *reinterpret_cast<uint4*>(to + j) =
          make_uint4(from[j], from[j + 1], from[j + 2], from[j + 3]);
  }
}

// Where the elements of a group are: all of them, in 16 bytes, or the first n, one by one.
template <int V, bool kAligned>
struct Access {
  static __device__ __forceinline__ void load(const float* from, int n, float (&to)[V]) {
    if constexpr (kAligned) {
      uint32_t words[V];
      load_words(reinterpret_cast<const uint32_t*>(from), words);
#pragma unroll
      for (int j = 0; j < V; ++j) to[j] = from_bits(words[j]);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) to[j] = j < n ? from[j] : 0.0f;
    }
  }

  static __device__ __forceinline__ void store(const float (&from)[V], int n, float* to) {
    if constexpr (kAligned) {
      uint32_t words[V];
#pragma unroll
      for (int j = 0; j < V; ++j) words[j] = to_bits(from[j]);
      store_words(words, reinterpret_cast<uint32_t*>(to));
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (j < n) to[j] = from[j];
    }
  }

  static __device__ __forceinline__ Bits<V> load_bits(const void* from, ScalarType type, int64_t at,
                                                      int n) {
    Bits<V> bits = {};
    const uint32_t* words = static_cast<const uint32_t*>(from) + at;
    const uint16_t* halves = static_cast<const uint16_t*>(from) + at;
    if constexpr (kAligned) {
      if (type == ScalarType::Float) {
        load_words(words, bits.w);
      } else {
        uint32_t pairs[V / 2];
        load_words(reinterpret_cast<const uint32_t*>(halves), pairs);
#pragma unroll
        for (int j = 0; j < V / 2; ++j) bits.w[j] = pairs[j];
      }
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (j >= n) continue;
        if (type == ScalarType::Float)
          bits.w[j] = words[j];
        else
          bits.w[j / 2] |= static_cast<uint32_t>(halves[j]) << (16 * (j % 2));
      }
    }
    return bits;
  }

  // Rounds to the network's dtype and stores.
  static __device__ __forceinline__ void store_network(const float (&from)[V], ScalarType type,
                                                       int64_t at, int n, void* to) {
    if (type == ScalarType::Float) return store(from, n, static_cast<float*>(to) + at);
    uint16_t* target = static_cast<uint16_t*>(to) + at;
    uint32_t pairs[V / 2] = {};
#pragma unroll
    for (int j = 0; j < V; ++j) pairs[j / 2] |= rounded(from[j], type) << (16 * (j % 2));
    if constexpr (kAligned) {
      store_words(pairs, reinterpret_cast<uint32_t*>(target));
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (j < n) target[j] = static_cast<uint16_t>(pairs[j / 2] >> (16 * (j % 2)));
    }
  }

  static __device__ __forceinline__ uint32_t rounded(float value, ScalarType type) {
    Half half;
    BFloat16 brain;
    ak::store(value, &half);
    ak::store(value, &brain);
    return type == ScalarType::Half ? half.x : brain.x;
  }
};

template <int V>
__device__ __forceinline__ void unpack(const Bits<V>& bits, ScalarType type, float (&to)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const uint32_t half = bits.w[j / 2] >> (16 * (j % 2)) & 0xffffu;
    if (type == ScalarType::Float)
      to[j] = from_bits(bits.w[j]);
    else if (type == ScalarType::Half)
      to[j] = load(Half(static_cast<uint16_t>(half), Half::from_bits()));
    else
      to[j] = from_bits(half << 16);
  }
}

}  // namespace ak
