// Arithmetic of one element of one solver step, and the layout of a table row.
//
//   m       = mu + g (mc - mu)                           guidance
//   h       = p x + q m                                  what the solver keeps
//   x_next  = A x + sum_k C_k h_{i-k} + S z              the update
//   input   = c x_next                                   what the network is fed next
//   third   = x_{i+1} - 3 x_i + 3 x_{i-1} - x_{i-2}      third-order difference
//
// Knows no tensors and no torch; compiles for host and device. Every implementation adds in the
// order written here, and the build forbids contraction into fused multiply-adds on the host, so
// that an element has one value whatever the vector width.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define AK_HD __host__ __device__ __forceinline__
#else
#define AK_HD inline __attribute__((always_inline))
#endif

namespace ak {

// A row of SolverTable.rows(): six scalars, then C_0 .. C_{K-1}.
constexpr int64_t kRowScalars = 6;

struct Row {
  float p, q, A, S;
  float input_scale, timestep;  // of the step after this one
  const float* C;
};

AK_HD Row row_at(const float* rows, int64_t width, int64_t step) {
  const float* r = rows + step * width;
  return {r[0], r[1], r[2], r[3], r[4], r[5], r + kRowScalars};
}

AK_HD float guide(float unconditional, float conditional, float guidance_scale) {
  return unconditional + guidance_scale * (conditional - unconditional);
}

AK_HD float keep(const Row& row, float x, float m) { return row.p * x + row.q * m; }

AK_HD float update(const Row& row, float x, float h) { return row.A * x + row.C[0] * h; }

// Grouped so that the large, nearly equal terms cancel first: two roundings fewer than as written.
AK_HD float third_difference(float x_next, float x0, float x1, float x2) {
  return (x_next - x2) - 3.0f * (x0 - x1);
}

// Slot of step `step` in a ring of `depth` slots.
AK_HD int64_t slot(int64_t step, int64_t depth) { return step % depth; }

}  // namespace ak
