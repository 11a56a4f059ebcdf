// CUDA kernel of `step`.
//
// Computes: what cpu/step.cpp computes, for all samples in one launch.
// Work: a block of 256 threads has 1024 elements of a sample (kQuads = 1) or 2048 (2), four
// neighbours a thread at a time. Its sums go off as messages; one block of the sample adds them and
// decides. With one quad that is the sample's last block: all blocks are launched to run at once,
// and it waits for the others. With two it is the block that arrives last, of the sample or, where
// it decides together, of the batch: it waits for nothing but stores that are under way.
// Bytes per element: as cpu/step.cpp; 16 of sums per 1024 elements at most.
#pragma once

#include "cuda/step_finish.h"
#include "cuda/thread/solve.h"

namespace ak {

constexpr int kStepThreads = 256;
static_assert(kStepThreads == kStrands, "a thread of the block that decides has a strand of sums");

using StepNumbers = Numbers<kMaxHistory>;

// By a whole block: a number a thread, all on their way together.
template <typename V>
__device__ __forceinline__ void read_numbers(const Args& a, const Place& at, StepNumbers* to,
                                             float* share) {
  const int word = threadIdx.x, entry = threadIdx.x - 32;
  // Ten scalars, then C_0, C_1, ...: as they stand in a row of the table.
  if (word < a.width) reinterpret_cast<float*>(to)[word] = a.rows[at.index * a.width + word];
  if constexpr (V::filled) {
    if (entry >= 0 && entry < kWeights)
      reinterpret_cast<float*>(&to->weights)[entry] = weights_of(a, at)[entry];
    if (threadIdx.x == 64) *share = share_at(a, at);
  }
}

// The terms of the history beyond the first, which came with the latents.
template <typename V>
__device__ __forceinline__ void add_history(const Args& a, const Place& at, const StepNumbers& row,
                                            const Elements<V>& g, float (&x)[kQuad]) {
  if (a.K > 1 && at.index >= 1) {
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[j] += row.C[1] * g.old[0][j];
  }
#pragma unroll 1
  for (int k = 2; k < a.K && k <= at.index; ++k) {
    float old[kQuad];
    load(kept(a, at, at.index - k), g, old);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) x[j] += row.C[k] * old[j];
  }
}

// One quad: its sums; with `writes` also what the step leaves, else x_next, g->h and g->e.
template <typename V>
__device__ __forceinline__ void do_quad(const Args& a, const Place& at, const StepNumbers& row,
                                        float share, float scale, Elements<V>* g,
                                        float (&x_next)[kQuad],
                                        float (&columns)[V::columns > 0 ? V::columns : 1]) {
  if (!V::filled || is_fresh(at)) take_model_output(a, scale, g);
  if constexpr (V::summed == kSumDefect)
    if (wants_defect(a, at)) columns[kDefectColumn] = sum_defect(a, at, row, *g);
  solve(a, at, row, share, g, x_next);
  if constexpr (V::history) add_history(a, at, row, *g, x_next);
  if (row.S != 0.0f) add_noise(a, at, row.S, *g, x_next);
  if constexpr (V::summed == kSumThird || V::summed == kSumFirst) {
    const bool first = wants_first(a, at), third = wants_third(a, at);
    // The latents a whole step before the new ones.
    if (first && a.rule.stages > 1) {
      float back[kQuad];
      load(ring<V>(a, at, at.index + 1 - a.rule.stages), *g, back);
      sum_differences(*g, x_next, back, g->x_1, g->x_2, third, first, columns);
    } else {
      sum_differences(*g, x_next, g->x, g->x_1, g->x_2, third, first, columns);
    }
  }
}

template <typename V>
__device__ __forceinline__ void write_step(const Args& a, const Place& at, const StepNumbers& row,
                                           const Elements<V>& g, const float (&x_next)[kQuad]) {
  store(x_next, g, ring<V>(a, at, at.index + 1));
  if (at.index + 1 < a.T) write_input(a, at, row.input_scale, g, x_next);
  if constexpr (V::history)
    if (a.K > 1) store(g.h, g, kept(a, at, at.index));
  if constexpr (V::filled)
    if (is_fresh(at)) store(g.e[0], g, output(a, at, at.nfe));
}

// How many blocks of a multiprocessor share its registers.
template <typename V>
constexpr int kStepBlocks = V::noise                  ? 2
                            : V::filled || V::history ? 3
                                                      : 4;

template <typename V, int kQuads>
__global__ void __launch_bounds__(kStepThreads, kStepBlocks<V>)
    step_kernel(const __grid_constant__ Args given, const bool fresh) {
  const Args a = known<V>(given, kQuads == 1);
  AK_SHARED(StepNumbers, row);
  AK_SHARED(float, share);
  AK_SHARED(GroupSums<V::columns>, sums);
  const int64_t b = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  if (b >= a.B) return;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kQuads;
  Elements<V> g[kQuads];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    stand(a, (piece + q) * kPiece + threadIdx.x * kQuad, &g[q]);
    // Of a step on a fill it is not needed: there the progress is looked at first.
    if (!V::filled || kQuads == 1) load_model_output(a, b, &g[q]);
  }
  const Place at = place_now(a, b);
  const float scale = guidance_of(a, b);
  const uint32_t number = launch_number(a, b);
  const bool moving = moves(a, at, fresh);
  if (moving) {
    read_numbers<V>(a, at, &row, &share);
    Rows rows = rows_of<V>(a, at, wants_third(a, at));
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      load_latents(rows, &g[q]);
      if constexpr (V::summed == kSumDefect) load_outputs(rows, &g[q]);
      if constexpr (V::history) load_history(rows, 1, &g[q]);
      if (V::filled && kQuads > 1 && is_fresh(at)) load_model_output(a, b, &g[q]);
    }
    // Loads are under way, and the numbers are there.
    __syncthreads();
    if constexpr (V::filled && V::summed != kSumDefect) need_outputs<V>(a, at, row.weights, &rows);
    float x_next[kQuads][kQuad];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if constexpr (V::filled && V::summed != kSumDefect) load_outputs(rows, &g[q]);
      float columns[V::columns > 0 ? V::columns : 1] = {};
      do_quad(a, at, row, V::filled ? share : 0.0f, scale, &g[q], x_next[q], columns);
      if (kQuads > 1) write_step(a, at, row, g[q], x_next[q]);
      if constexpr (V::columns > 0) leave_sums<V::columns, V::columns>(columns, q, 0, sums);
    }
    if constexpr (V::columns > 0) {
      __syncthreads();
      if (threadIdx.x < 32) send_sums<V::columns>(a, b, piece, kQuads, V::columns, number, sums);
    }
    if (kQuads == 1) write_step(a, at, row, g[0], x_next[0]);
  }
  const bool together = kQuads > 1 && a.rule.batch_wide;
  bool last = blockIdx.x == gridDim.x - 1;
  if (kQuads > 1 && (moving || together))
    last = arrive_last(&head_of(a, together ? 0 : b)->arrived,
                       together ? gridDim.x * a.B : int64_t{gridDim.x});
  if (last) finish<V>(a, at, fresh, together);
}

}  // namespace ak
