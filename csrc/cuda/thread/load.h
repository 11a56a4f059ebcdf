// What a thread reads of its elements for a step or a run, and where a sample's rows are.
#pragma once

#include "cuda/grid/device.h"
#include "cuda/thread/packed.h"
#include "cuda/variant.h"
#include "op/progress.h"

namespace ak {

constexpr int kRunHistory = 2;  // terms of the history that a run keeps in registers

// Where in a row: regular rows hold fewer than 2^31 elements.
template <typename V>
using Offset = std::conditional_t<V::aligned, int32_t, int64_t>;

// Four neighbours of a sample, from element `from` on; `n` of them exist.
template <typename V>
struct Elements {
  Offset<V> from;
  int n;
  float x[kQuad];                 // at the step
  float x_1[kQuad], x_2[kQuad];   // two and three whole steps before the new latents
  float m[kQuad];                 // guided model output
  float e[2][kQuad];              // E_0, E_1; after a refresh its own output is E_0
  float old[kRunHistory][kQuad];  // h_{i-1}, h_{i-2}
  float h[kQuad];
  Packed<typename V::Network> one, two;  // model output: unconditional, conditional
};

// A sample's rows that a step reads, each to be added an element's place to; null where there is
// none.
struct Rows {
  const float* x;
  const float *x_1, *x_2;
  const float* e[2];
  const float* old[kRunHistory];
};

// The counters of a sample, all of them on their way together; not what its rule keeps.
__device__ __forceinline__ Place place_now(const Args& a, int64_t b) {
  const int32_t* p = a.progress + b;
  const int32_t index = load_now(p + kIndex * a.B), run = load_now(p + kRun * a.B);
  const int32_t nfe = load_now(p + kNfe * a.B), last_call = load_now(p + kLastCall * a.B);
  const int32_t call_before = load_now(p + kCallBefore * a.B);
  return {b, index, run, nfe, last_call, call_before, {0.0, 0.0}};
}

// A possible step is below 2^31 and, where rows are regular, one that ring_inverse divides right.
template <typename V>
__device__ __forceinline__ float* ring(const Args& a, const Place& at, int64_t step) {
  const auto i = static_cast<uint32_t>(step), depth = static_cast<uint32_t>(a.R);
  const uint32_t slot = V::aligned ? i - depth * upper_product(i, a.ring_inverse) : i % depth;
  return a.latents + (slot * a.B + at.b) * a.N;
}

__device__ __forceinline__ float* kept(const Args& a, const Place& at, int64_t step) {
  return a.history + (slot(step, a.K - 1) * a.B + at.b) * a.N;
}

__device__ __forceinline__ float* output(const Args& a, const Place& at, int64_t refresh) {
  return a.outputs + (slot(refresh, kOutputs) * a.B + at.b) * a.N;
}

template <typename V>
__device__ __forceinline__ void stand(const Args& a, int64_t from, Elements<V>* g) {
  g->from = static_cast<Offset<V>>(from);
  const Offset<V> left = static_cast<Offset<V>>(a.N) - g->from;
  g->n = left >= kQuad ? kQuad : left > 0 ? static_cast<int>(left) : 0;
}

// Zeros where there is no such row.
template <typename V>
__device__ __forceinline__ void load(const float* row, const Elements<V>& g, float (&to)[kQuad]) {
  load<V::aligned>(row + g.from, row ? g.n : 0, to);
}

template <typename V>
__device__ __forceinline__ void store(const float (&from)[kQuad], const Elements<V>& g,
                                      float* row) {
  store<V::aligned>(from, g.n, row + g.from);
}

// The network's output, as it lies there.
template <typename V>
__device__ __forceinline__ void load_model_output(const Args& a, int64_t b, Elements<V>* g) {
  g->one.load(a.model_output, a.output_type, b * a.N + g->from, g->n);
  if (a.guided) g->two.load(a.model_output, a.output_type, (a.B + b) * a.N + g->from, g->n);
}

__device__ __forceinline__ float guidance_of(const Args& a, int64_t b) {
  return a.guided ? a.guidance_scale[b] : 0.0f;
}

template <typename V>
__device__ __forceinline__ void take_model_output(const Args& a, float scale, Elements<V>* g) {
  g->one.unpack(a.output_type, g->m);
  if (!a.guided) return;
  float conditional[kQuad];
  g->two.unpack(a.output_type, conditional);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) g->m[j] = guide(g->m[j], conditional[j], scale);
}

// The rows of a step: the latents, with `third` those before, as far as there are any; the history
// and E_0 and E_1 as far as they exist.
template <typename V>
__device__ __forceinline__ Rows rows_of(const Args& a, const Place& at, bool third) {
  const int32_t next = at.index + 1, stages = static_cast<int32_t>(a.rule.stages);
  Rows rows = {};
  rows.x = ring<V>(a, at, at.index);
  if constexpr (V::summed == kSumThird) {
    if (third && next >= 2 * stages) rows.x_1 = ring<V>(a, at, next - 2 * stages);
    if (third && next >= 3 * stages) rows.x_2 = ring<V>(a, at, next - 3 * stages);
  }
  if constexpr (V::history) {
#pragma unroll
    for (int k = 0; k < kRunHistory; ++k)
      if (k + 1 < a.K && k + 1 <= at.index) rows.old[k] = kept(a, at, at.index - 1 - k);
  }
  if constexpr (V::filled) {
#pragma unroll
    for (int k = 0; k < 2; ++k)
      if (at.nfe > k) rows.e[k] = output(a, at, at.nfe - 1 - k);
  }
  return rows;
}

// Leaves out what a refresh or a skipped step with these weights does not need.
template <typename V>
__device__ __forceinline__ void need_outputs(const Args& a, const Place& at, const Weights& w,
                                             Rows* rows) {
  const bool fresh = is_fresh(at), fills = !fresh || wants_defect(a, at);
#pragma unroll
  for (int k = 0; k < 2; ++k)
    if (!(fills && w.f[k] != 0.0f) && !(fresh && w.r[k + 1] != 0.0f)) rows->e[k] = nullptr;
}

template <typename V>
__device__ __forceinline__ void load_latents(const Rows& rows, Elements<V>* g) {
  load(rows.x, *g, g->x);
  if constexpr (V::summed == kSumThird) {
    load(rows.x_1, *g, g->x_1);
    load(rows.x_2, *g, g->x_2);
  }
}

template <typename V>
__device__ __forceinline__ void load_outputs(const Rows& rows, Elements<V>* g) {
#pragma unroll
  for (int k = 0; k < 2; ++k) load(rows.e[k], *g, g->e[k]);
}

// `terms` of the history.
template <typename V>
__device__ __forceinline__ void load_history(const Rows& rows, int terms, Elements<V>* g) {
#pragma unroll
  for (int k = 0; k < kRunHistory; ++k)
    if (k < terms) load(rows.old[k], *g, g->old[k]);
}

}  // namespace ak
