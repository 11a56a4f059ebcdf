// CUDA's qualifiers and vector types, as far as our kernels use them, for a plain C++ compiler.
#pragma once

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// All of this is hidden, here and in the other headers: two emulated libraries in one Python
// process must not share it.
#pragma GCC visibility push(hidden)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned nx = 1, unsigned ny = 1, unsigned nz = 1) : x(nx), y(ny), z(nz) {}
};

// Aligned as in CUDA, so that -fsanitize=undefined reports a misaligned access.
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// The scheduler writes them at every switch.
inline uint3 threadIdx = {}, blockIdx = {};
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#pragma GCC visibility pop
