// What a thread reads of its elements for a step or a run, and where a sample's rows are.
#pragma once

#include "cuda/thread/access.h"
#include "op/progress.h"

namespace ak {

// V elements of a sample, from element `from` on; `n` of them exist.
template <int V, int kHistory, bool kAligned>
struct Elements : Access<V, kAligned> {
  int64_t from;
  int n;
  float x[V];              // at the step
  float x_1[V], x_2[V];    // two and three whole steps before
  float m[V];              // guided model output
  float old[kHistory][V];  // h_{i-1}, h_{i-2}, ...; the last is spare
  float e[kOutputs][V];    // E_0, E_1, E_2; after a refresh its own output is E_0
  float h[V];
};

__device__ __forceinline__ float* ring(const Args& a, const Place& at, int64_t step) {
  return a.latents + (slot(step, a.R) * a.B + at.b) * a.N;
}

__device__ __forceinline__ float* kept(const Args& a, const Place& at, int64_t step) {
  return a.history + (slot(step, a.K - 1) * a.B + at.b) * a.N;
}

__device__ __forceinline__ float* output(const Args& a, const Place& at, int64_t refresh) {
  return a.outputs + (slot(refresh, kOutputs) * a.B + at.b) * a.N;
}

// Reads latents, history and, where the step takes it, the model output; with `third` also the
// latents before, as far as there are any.
template <bool kFilled, int V, int kHistory, bool kAligned>
__device__ __forceinline__ void load_elements(const Args& a, const Place& at, bool third,
                                              Elements<V, kHistory, kAligned>* g) {
  const int32_t i = at.index, next = i + 1, stages = static_cast<int32_t>(a.rule.stages);
  g->load(ring(a, at, i) + g->from, g->n, g->x);
  if (third && next >= 2 * stages) g->load(ring(a, at, next - 2 * stages) + g->from, g->n, g->x_1);
  if (third && next >= 3 * stages) g->load(ring(a, at, next - 3 * stages) + g->from, g->n, g->x_2);
#pragma unroll
  for (int k = 1; k < kHistory; ++k)
    if (k < a.K && k <= i) g->load(kept(a, at, i - k) + g->from, g->n, g->old[k - 1]);
  if (kFilled && !is_fresh(at)) return;
  const Bits<V> one = g->load_bits(a.model_output, a.output_type, at.b * a.N + g->from, g->n);
  if (!a.guided) return unpack(one, a.output_type, g->m);
  const Bits<V> two =
      g->load_bits(a.model_output, a.output_type, (a.B + at.b) * a.N + g->from, g->n);
  const float scale = a.guidance_scale[at.b];
  float unconditional[V], conditional[V];
  unpack(one, a.output_type, unconditional);
  unpack(two, a.output_type, conditional);
#pragma unroll
  for (int j = 0; j < V; ++j) g->m[j] = guide(unconditional[j], conditional[j], scale);
}

// Reads the outputs that this step uses; with `run` also those the steps after it may.
template <int V, int kHistory, bool kAligned>
__device__ __forceinline__ void load_outputs(const Args& a, const Place& at, const Weights& w,
                                             bool run, Elements<V, kHistory, kAligned>* g) {
  const bool fresh = is_fresh(at), fills = !fresh || wants_defect(a, at);
#pragma unroll
  for (int k = 0; k < kOutputs; ++k) {
    const bool repairs = fresh && k + 1 < kOutputs && w.r[k + 1 < kOutputs ? k + 1 : 0] != 0.0f;
    const bool later = run && (!fresh || k + 1 < kOutputs);
    if (k < at.nfe && ((fills && w.f[k] != 0.0f) || repairs || later))
      g->load(output(a, at, at.nfe - 1 - k) + g->from, g->n, g->e[k]);
  }
}

}  // namespace ak
