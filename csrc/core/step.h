// Arithmetic of one element of one solver step, and the layout of a table row.
//
//   m       = mu + g (mc - mu)                           guidance
//   h       = p x + q m                                  what the solver keeps
//   x_next  = A x + sum_k C_k h_{i-k} + S z              the update
//   input   = c x_next                                   what the network is fed next
//   third   = x_{i+1} - 3 x_i + 3 x_{i-1} - x_{i-2}      third-order difference
//
// With a fill other than reuse, e = u x + w m is what a call leaves behind, E_0, E_1, E_2 are the
// last three of them before this step, newest first, and
//
//   skipped step    h = ps x + qs (f_0 E_0 + f_1 E_1 + f_2 E_2)
//   refresh         h = p x + q m + qs (r_0 e + r_1 E_0 + r_2 E_1)
//   defect          e - (f_0 E_0 + f_1 E_1 + f_2 E_2)    at a refresh
//   kept output     e - share defect                     core/defect.h
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

// A row of FillTables.rows: ten scalars, then C_0 .. C_{K-1}.
constexpr int64_t kRowScalars = 10;

struct Row {
  float p, q, A, S;
  float input_scale, timestep;  // of the step after this one
  float u, w, ps, qs;
  const float* C;

  AK_HD float first() const { return C[0]; }
};

constexpr int64_t kOutputs = 3;  // outputs kept
constexpr int64_t kWeights = 8;

// An entry of FillTables.weights: of a step, by the distances to the last refresh before it and
// from that one to the refresh before.
struct Weights {
  float f[kOutputs], r[kOutputs];
  // Of the rule `defect`: its rate per unit of rms defect, and the noise of e per unit of m's.
  float spread, noise;
};

AK_HD Row row_at(const float* rows, int64_t width, int64_t step) {
  const float* r = rows + step * width;
  return {r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r + kRowScalars};
}

// V is float, or a vector of them where a compiler has such a type; R a Row, or its numbers nearer
// by.
template <typename V>
AK_HD V guide(V unconditional, V conditional, float guidance_scale) {
  return unconditional + guidance_scale * (conditional - unconditional);
}

template <typename R, typename V>
AK_HD V keep(const R& row, V x, V m) {
  return row.p * x + row.q * m;
}

template <typename R, typename V>
AK_HD V kept_output(const R& row, V x, V m) {
  return row.u * x + row.w * m;
}

template <typename R, typename V>
AK_HD V update(const R& row, V x, V h) {
  return row.A * x + row.first() * h;
}

// What a refresh leaves behind for later steps.
template <typename V>
AK_HD V leave_output(V e, V fill, float share) {
  return e - share * (e - fill);
}

// Of two outputs, as the linear fill has it.
template <typename V>
AK_HD V fill(const Weights& w, V e0, V e1) {
  return w.f[0] * e0 + w.f[1] * e1;
}

// h of a skipped step.
template <typename R, typename V>
AK_HD V keep_filled(const R& row, V x, V fill) {
  return row.ps * x + row.qs * fill;
}

// What a refresh adds to h, with two outputs before it.
template <typename R, typename V>
AK_HD V repair(const R& row, const Weights& w, V e, V e0, V e1) {
  return row.qs * (w.r[0] * e + w.r[1] * e0 + w.r[2] * e1);
}

// Grouped so that the large, nearly equal terms cancel first: two roundings fewer than as written.
template <typename V>
AK_HD V third_difference(V x_next, V x0, V x1, V x2) {
  return (x_next - x2) - 3.0f * (x0 - x1);
}

AK_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Index of a distance of at least 1 in a table of `size` of them; longer ones share the last.
AK_HD int64_t distance(int64_t steps, int64_t size) {
  const int64_t most = least(steps, size);
  return (most > 1 ? most : 1) - 1;
}

// Slot of step `step` in a ring of `depth` slots; steps fit 32 bits, which a GPU divides faster.
AK_HD int64_t slot(int64_t step, int64_t depth) {
  return static_cast<uint32_t>(step) % static_cast<uint32_t>(depth);
}

// Whole steps in `rows` rows of so many stages each.
AK_HD int64_t whole_steps(int64_t rows, int64_t stages) {
  return static_cast<uint32_t>(rows) / static_cast<uint32_t>(stages);
}

}  // namespace ak
