// One solver step of a thread's elements, in registers: the arithmetic of core/step.h and its sums.
// `step` does it once, `advance` once for every step of a run.
#pragma once

#include "core/noise.h"
#include "cuda/thread/load.h"

namespace ak {

// f_0 E_0 + f_1 E_1 + f_2 E_2; a weight of 0 leaves its output out, whatever is there.
template <int V, int kHistory, bool kAligned>
__device__ __forceinline__ void fill(const Place& at, const Weights& w,
                                     const Elements<V, kHistory, kAligned>& g, float (&sum)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] = 0.0f;
#pragma unroll
  for (int k = 0; k < kOutputs; ++k) {
    if (k >= at.nfe || w.f[k] == 0.0f) continue;
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += w.f[k] * g.e[k][j];
  }
}

// Takes a share of the defect out of a refresh's output, before that is kept; e_0 and e_1 are those
// before it, which exist where there is a share.
template <int V>
__device__ __forceinline__ void leave_share(const Weights& w, float share, const float (&e_0)[V],
                                            const float (&e_1)[V], float (&e)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) e[j] = leave_output(e[j], ak::fill(w, e_0[j], e_1[j]), share);
}

// A refresh: h with its repair, and the outputs with its own, less a share of the defect.
template <int V, int kHistory, bool kAligned>
__device__ __forceinline__ void refresh(const Place& at, const Row& row, const Weights& w,
                                        float share, Elements<V, kHistory, kAligned>* g) {
  const bool repairs = w.r[0] != 0.0f || w.r[1] != 0.0f || w.r[2] != 0.0f;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const float e = kept_output(row, g->x[j], g->m[j]);
    if (repairs) {
      float sum = w.r[0] * e;
      if (at.nfe >= 1) sum += w.r[1] * g->e[0][j];
      if (at.nfe >= 2) sum += w.r[2] * g->e[1][j];
      g->h[j] += row.qs * sum;
    }
    g->e[2][j] = g->e[1][j];
    g->e[1][j] = g->e[0][j];
    const float fill = share != 0.0f ? ak::fill(w, g->e[1][j], g->e[2][j]) : 0.0f;
    g->e[0][j] = share != 0.0f ? leave_output(e, fill, share) : e;
  }
}

template <int V, int kHistory, bool kAligned>
__device__ __forceinline__ void add_noise(const Args& a, const Place& at, float S,
                                          const Elements<V, kHistory, kAligned>& g, float (&x)[V]) {
  float z[V];
  if (a.noise) {
    g.load(a.noise + (at.index * a.B + at.b) * a.N + g.from, g.n, z);
  } else {
#pragma unroll
    for (int j = 0; j < V; j += 4)
      normal<1>(static_cast<uint64_t>(a.seed[at.b]), static_cast<uint64_t>((g.from + j) / 4),
                static_cast<uint32_t>(at.index), z + j);
  }
#pragma unroll
  for (int j = 0; j < V; ++j) x[j] += S * z[j];
}

// The new latents of the step; g->h and g->e are then those of the step. `share`: of the defect,
// that a refresh leaves out of its output.
template <bool kFilled, int V, int kHistory, bool kAligned>
__device__ __forceinline__ void solve(const Args& a, const Place& at, const Row& row,
                                      const Weights& w, Elements<V, kHistory, kAligned>* g,
                                      float (&x_next)[V], float share = 0.0f) {
  if (kFilled && !is_fresh(at)) {
    float sum[V];
    fill(at, w, *g, sum);
#pragma unroll
    for (int j = 0; j < V; ++j) g->h[j] = keep_filled(row, g->x[j], sum[j]);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) g->h[j] = keep(row, g->x[j], g->m[j]);
    if constexpr (kFilled) refresh(at, row, w, share, g);
  }
#pragma unroll
  for (int j = 0; j < V; ++j) x_next[j] = update(row, g->x[j], g->h[j]);
#pragma unroll
  for (int k = 1; k < kHistory; ++k) {
    if (k >= a.K || k > at.index) continue;
#pragma unroll
    for (int j = 0; j < V; ++j) x_next[j] += row.C[k] * g->old[k - 1][j];
  }
  if (row.S != 0.0f) add_noise(a, at, row.S, *g, x_next);
}

// The registers a step on: what was new is now the past.
template <int V, int kHistory, bool kAligned>
__device__ __forceinline__ void shift(const float (&x_next)[V],
                                      Elements<V, kHistory, kAligned>* g) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    g->x_2[j] = g->x_1[j];
    g->x_1[j] = g->x[j];
    g->x[j] = x_next[j];
#pragma unroll
    for (int k = kHistory - 1; k > 0; --k) g->old[k][j] = g->old[k - 1][j];
    g->old[0][j] = g->h[j];
  }
}

template <int V, int kHistory, bool kAligned>
__device__ __forceinline__ void write_input(const Args& a, const Place& at, const Row& row,
                                            const Elements<V, kHistory, kAligned>& g,
                                            const float (&x_next)[V]) {
  float scaled[V];
#pragma unroll
  for (int j = 0; j < V; ++j) scaled[j] = row.input_scale * x_next[j];
  for (int64_t b = at.b; b < (a.guided ? 2 * a.B : a.B); b += a.B)
    g.store_network(scaled, a.input_type, b * a.N + g.from, g.n, a.model_input);
}

// Float sums over four elements, added in double: the same for every V.
template <int V, typename Term>
__device__ __forceinline__ double quad_sums(int n, Term term) {
  double sum = 0;
#pragma unroll
  for (int j = 0; j < V; j += 4) {
    float quad = 0.0f;
#pragma unroll
    for (int l = j; l < j + 4; ++l)
      if (l < n) quad += term(l);
    sum += quad;
  }
  return sum;
}

template <int V>
__device__ __forceinline__ double sum_third(int n, const float (&x_next)[V], const float (&back)[V],
                                            const float (&x_1)[V], const float (&x_2)[V]) {
  return quad_sums<V>(n, [&](int j) {
    const float d = third_difference(x_next[j], back[j], x_1[j], x_2[j]);
    return d * d;
  });
}

template <int V>
__device__ __forceinline__ double sum_first(const Args& a, int n, const float (&x_next)[V],
                                            const float (&back)[V]) {
  const bool squares = sums_squares(a.rule.criterion);
  return quad_sums<V>(n, [&](int j) {
    const float d = x_next[j] - back[j];
    return squares ? d * d : fabsf(d);
  });
}

// Of a refresh, before solve().
template <int V, int kHistory, bool kAligned>
__device__ __forceinline__ double sum_defect(const Place& at, const Row& row, const Weights& w,
                                             const Elements<V, kHistory, kAligned>& g) {
  float sum[V];
  fill(at, w, g, sum);
  return quad_sums<V>(g.n, [&](int j) {
    const float d = kept_output(row, g.x[j], g.m[j]) - sum[j];
    return d * d;
  });
}

}  // namespace ak
