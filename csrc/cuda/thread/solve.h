// One solver step of a thread's elements, in registers: the arithmetic of core/step.h and its sums.
// `step` does it once, `advance` once for every step of a run.
#pragma once

#include "core/noise.h"
#include "cuda/thread/load.h"

namespace ak {

// A row of the solver's table and an entry of the fill's, nearer by than in memory.
template <int kTerms>
struct Numbers {
  float p, q, A, S;
  float input_scale, timestep;
  float u, w, ps, qs;
  float C[kTerms];
  Weights weights;

  AK_HD float first() const { return C[0]; }
};

// f_0 E_0 + f_1 E_1 + f_2 E_2; a weight of 0 leaves its output out, whatever is there. The third
// is seldom used and read when it is.
template <typename V>
__device__ __forceinline__ void fill(const Args& a, const Place& at, const Weights& w,
                                     const Elements<V>& g, float (&sum)[kQuad]) {
  const bool first = w.f[0] != 0.0f, second = w.f[1] != 0.0f;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    sum[j] = first ? w.f[0] * g.e[0][j] : 0.0f;
    sum[j] += second ? w.f[1] * g.e[1][j] : 0.0f;
  }
  if (at.nfe > 2 && w.f[2] != 0.0f) {
    float third[kQuad];
    load(output(a, at, at.nfe - 3), g, third);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) sum[j] += w.f[2] * third[j];
  }
}

// A refresh: h with its repair, and the outputs with its own, less a share of the defect. Outputs
// that do not exist are zeros.
template <typename V, typename R>
__device__ __forceinline__ void refresh(const R& row, float share, Elements<V>* g) {
  const Weights& w = row.weights;
  float e[kQuad];
#pragma unroll
  for (int j = 0; j < kQuad; ++j) e[j] = kept_output(row, g->x[j], g->m[j]);
  if (w.r[0] != 0.0f || w.r[1] != 0.0f || w.r[2] != 0.0f) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) g->h[j] += repair(row, w, e[j], g->e[0][j], g->e[1][j]);
  }
  // A share is above zero only after two outputs.
  if (share != 0.0f) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      e[j] = leave_output(e[j], ak::fill(w, g->e[0][j], g->e[1][j]), share);
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j) g->e[1][j] = g->e[0][j], g->e[0][j] = e[j];
}

template <typename V>
__device__ __forceinline__ void add_noise(const Args& a, const Place& at, float S,
                                          const Elements<V>& g, float (&x)[kQuad]) {
  float z[kQuad];
  if constexpr (!V::noise) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[j] = NAN;
    return;
  }
  if (a.noise)
    load(a.noise + (at.index * a.B + at.b) * a.N, g, z);
  else
    normal<1>(static_cast<uint64_t>(a.seed[at.b]), static_cast<uint64_t>(g.from / kQuad),
              static_cast<uint32_t>(at.index), z);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) x[j] += S * z[j];
}

// x_next without the terms of the history and the noise; g->h and g->e are then those of the step.
// `share`: of the defect, that a refresh leaves out of its output.
template <typename V, typename R>
__device__ __forceinline__ void solve(const Args& a, const Place& at, const R& row, float share,
                                      Elements<V>* g, float (&x_next)[kQuad]) {
  if (V::filled && !is_fresh(at)) {
    float sum[kQuad];
    fill(a, at, row.weights, *g, sum);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) g->h[j] = keep_filled(row, g->x[j], sum[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) g->h[j] = keep(row, g->x[j], g->m[j]);
    if constexpr (V::filled) refresh(row, share, g);
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j) x_next[j] = update(row, g->x[j], g->h[j]);
}

template <typename V>
__device__ __forceinline__ void write_input(const Args& a, const Place& at, float input_scale,
                                            const Elements<V>& g, const float (&x)[kQuad]) {
  float scaled[kQuad];
#pragma unroll
  for (int j = 0; j < kQuad; ++j) scaled[j] = input_scale * x[j];
  const Packed<typename V::Network> packed =
      Packed<typename V::Network>::pack(a.input_type, scaled);
  packed.store(a.model_input, a.input_type, at.b * a.N + g.from, g.n);
  if (a.guided) packed.store(a.model_input, a.input_type, (a.B + at.b) * a.N + g.from, g.n);
}

template <typename V>
__device__ __forceinline__ bool exists(const Elements<V>& g, int j) {
  return V::aligned ? g.n > 0 : j < g.n;
}

// Adds the squares of four differences, the one sum for which multiplications are fused.
template <typename V, typename Difference>
__device__ __forceinline__ float sum_squares(const Elements<V>& g, Difference difference) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    const float d = difference(j);
    if (exists(g, j)) sum = fmaf(d, d, sum);
  }
  return sum;
}

// Of a step: the columns of its differences. `back`: the latents a whole step before the new ones.
template <typename V>
__device__ __forceinline__ void sum_differences(const Elements<V>& g, const float (&x_next)[kQuad],
                                                const float (&back)[kQuad],
                                                const float (&x_1)[kQuad],
                                                const float (&x_2)[kQuad], bool third, bool first,
                                                float* columns) {
  if constexpr (V::summed == kSumThird) {
    if (third)
      columns[kThirdColumn] = sum_squares(
          g, [&](int j) { return third_difference(x_next[j], back[j], x_1[j], x_2[j]); });
    if (first)
      columns[kFirstColumn<V>] = sum_squares(g, [&](int j) { return x_next[j] - back[j]; });
  } else if (first) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      if (exists(g, j)) sum += fabsf(x_next[j] - back[j]);
    columns[kFirstColumn<V>] = sum;
  }
}

// Of a refresh, before solve().
template <typename V, typename R>
__device__ __forceinline__ float sum_defect(const Args& a, const Place& at, const R& row,
                                            const Elements<V>& g) {
  float sum[kQuad];
  fill(a, at, row.weights, g, sum);
  return sum_squares(g, [&](int j) { return kept_output(row, g.x[j], g.m[j]) - sum[j]; });
}

}  // namespace ak
