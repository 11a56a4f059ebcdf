// A sample's run inside the kernel of `advance`: the numbers of its steps, the sums of a piece, and
// the steps themselves.
#pragma once

#include "cuda/advance_item.h"
#include "cuda/grid/sums.h"
#include "cuda/thread/solve.h"

namespace ak {

// Steps whose differences fit into the messages of a piece, and of how many at a time the sums are
// added.
constexpr int kMostCandidates = kSums / 2;
constexpr int kCandidates = 3;
constexpr int kGoes = (kMostCandidates + kCandidates - 1) / kCandidates;

// Sums of all the steps that a run may have; those of steps beyond kMostCandidates are never sent.
template <typename V>
constexpr int kRunColumns = V::summed == kSumDefect ? 1 : V::columns * kGoes * kCandidates;

// Steps that the run of a sample can have at most.
AK_HD int64_t most_steps(const Args& a, const Place& at) {
  return least(a.T - at.index, longest_run(a.rule, a.T));
}

// Of those, how many there is a decision to take about before the network is called for certain.
AK_HD int64_t most_candidates(const Args& a, const Place& at) {
  return at.index + 1 < a.rule.warmup ? 1 : most_steps(a, at);
}

using RunNumbers = Numbers<kRunHistory + 1>;
constexpr int kRowWords = kRowScalars + kRunHistory + 1;

// The numbers of a run's first steps, in shared memory.
constexpr int kSteps = 8;
struct Steps {
  RunNumbers numbers[kSteps];
  float share;  // of its defect, that the refresh leaves out of what it keeps
};

// By a whole block: a number a thread, all on their way together.
template <typename V>
__device__ __forceinline__ void read_steps(const Args& a, const Place& at, Steps* to) {
  static_assert(kSteps * kRowWords <= 128, "the weights' threads begin there");
  const int row = threadIdx.x / kRowWords, word = threadIdx.x % kRowWords;
  if (row < kSteps && word < a.width && at.index + row < a.T)
    reinterpret_cast<float*>(&to->numbers[row])[word] = a.rows[(at.index + row) * a.width + word];
  if constexpr (V::filled) {
    const int thread = static_cast<int>(threadIdx.x) - 128;
    const int step = thread / kWeights, entry = thread % kWeights;
    if (thread >= 0 && step < kSteps && at.index + step < a.T)
      reinterpret_cast<float*>(&to->numbers[step].weights)[entry] =
          weights_of(a, along(at, step))[entry];
    if (threadIdx.x == 128 + kSteps * kWeights) to->share = share_at(a, at);
  }
}

// Those of step k of the run, at which the sample stands at `at`.
template <typename V>
__device__ __forceinline__ RunNumbers numbers_of(const Args& a, const Place& at, int64_t k,
                                                 const Steps& steps) {
  if (k < kSteps) return steps.numbers[k];
  RunNumbers numbers = {};
  const float* row = a.rows + at.index * a.width;
  for (int word = 0; word < kRowWords; ++word)
    if (word < a.width) reinterpret_cast<float*>(&numbers)[word] = row[word];
  if constexpr (V::filled) numbers.weights = weights_at(a, at);
  return numbers;
}

// A whole step, and the registers a step on: what was new is now the past.
template <typename V>
__device__ __forceinline__ void take_step(const Args& a, const Place& at, const RunNumbers& row,
                                          float share, Elements<V>* g) {
  float x_next[kQuad];
  solve(a, at, row, share, g, x_next);
  if constexpr (V::history) {
#pragma unroll
    for (int k = 0; k < kRunHistory; ++k) {
      if (k + 1 >= a.K || k + 1 > at.index) continue;
#pragma unroll
      for (int j = 0; j < kQuad; ++j) x_next[j] += row.C[k + 1] * g->old[k][j];
    }
  }
  if (row.S != 0.0f) add_noise(a, at, row.S, *g, x_next);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    if constexpr (V::summed == kSumThird) g->x_2[j] = g->x_1[j], g->x_1[j] = g->x[j];
    if constexpr (V::summed == kSumFirst) g->x_1[j] = g->x[j];
    g->x[j] = x_next[j];
    if constexpr (V::history) {
#pragma unroll
      for (int k = kRunHistory - 1; k > 0; --k) g->old[k][j] = g->old[k - 1][j];
      g->old[0][j] = g->h[j];
    }
  }
}

// What the first half reads of a piece but the network's output.
template <typename V>
__device__ __forceinline__ void load_run(const Rows& rows, Elements<V>* g) {
  load_latents(rows, g);
  if constexpr (V::filled) load_outputs(rows, g);
  if constexpr (V::history) load_history(rows, kRunHistory, g);
}

// The first half of a rule by differences: the sums of all `most` steps that the run may have. A
// warp's quad belongs to `piece` of the block's two.
template <typename V>
__device__ __forceinline__ void gather(const Args& a, Place at, int32_t most, int piece,
                                       const Steps& steps, Elements<V> g,
                                       GroupSums<kRunColumns<V>>& sums) {
  constexpr int kColumns = V::columns * kCandidates;
#pragma unroll 1
  for (int32_t begin = 0; begin < most; begin += kCandidates) {
    float columns[kColumns] = {};
#pragma unroll
    for (int k = 0; k < kCandidates; ++k) {
      if (begin + k >= most) continue;
      const bool third = wants_third(a, at);
      float x_2[kQuad];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) x_2[j] = g.x_2[j];
      take_step(a, at, steps.numbers[begin + k], 0.0f, &g);
      if constexpr (V::summed == kSumThird) {
        // A step on, what was x_1 is x_2.
        sum_differences(g, g.x, g.x_1, g.x_2, x_2, third, true, &columns[V::columns * k]);
      } else {
        sum_differences(g, g.x, g.x_1, g.x_1, g.x_1, false, true, &columns[V::columns * k]);
      }
      step_past(&at);
    }
    leave_sums<kColumns, kRunColumns<V>>(columns, piece, V::columns * begin, sums);
  }
}

// The first half of `defect`: the run's first step, the sum of its defect, and the output it keeps.
template <typename V>
__device__ __forceinline__ float take_first_step(const Args& a, const Place& at, const Steps& steps,
                                                 Elements<V>* g) {
  const RunNumbers& row = steps.numbers[0];
  const float sum = wants_defect(a, at) ? sum_defect(a, at, row, *g) : 0.0f;
  take_step(a, at, row, steps.share, g);
  if (is_fresh(at)) store(g->e[0], *g, output(a, at, at.nfe));
  return sum;
}

// The second half: takes the steps of a run of `length` and writes what they leave.
template <typename V>
__device__ __forceinline__ void run(const Args& a, Place at, int64_t length, const Steps& steps,
                                    Elements<V>* g) {
  constexpr bool kBegun = V::summed == kSumDefect;
  const int64_t latents_left = latents_read(a.rule);
#pragma unroll 1
  for (int64_t k = 0; k < length; ++k) {
    const RunNumbers row = numbers_of<V>(a, at, k, steps);
    if (!kBegun || k > 0) {
      take_step(a, at, row, steps.share, g);
      if (V::filled && is_fresh(at)) store(g->e[0], *g, output(a, at, at.nfe));
    }
    // What no step after the run reads is left out.
    if (k + latents_left >= length) store(g->x, *g, ring<V>(a, at, at.index + 1));
    if constexpr (V::history)
      if (a.K > 1 && k + a.K - 1 >= length) store(g->old[0], *g, kept(a, at, at.index));
    // At the end of a sampling the input of its last step stays.
    if (at.index + 1 < a.T && (k + 1 == length || at.index + 2 == a.T))
      write_input(a, at, row.input_scale, *g, g->x);
    step_past(&at);
  }
}

}  // namespace ak
