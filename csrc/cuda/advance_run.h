// A sample's run inside the kernel of `advance`: the sums of a piece, the decision about all of its
// steps, and the steps themselves.
#pragma once

#include "cuda/grid/barrier.h"
#include "cuda/grid/condition.h"
#include "cuda/grid/sums.h"
#include "cuda/shelf.h"
#include "cuda/thread/solve.h"

namespace ak {

// Steps whose differences fit into the sums of a piece.
constexpr int64_t kMaxCandidates = kSums / 2;

AK_HD bool decides_by_sums(const Args& a) {
  return needs_first(a.rule.criterion) || needs_defect(a.rule.criterion);
}

// Steps that the run of a sample can have at most.
AK_HD int64_t most_steps(const Args& a, const Place& at) {
  return least(a.T - at.index, longest_run(a.rule, a.T));
}

template <bool kFilled>
__device__ __forceinline__ Weights filled_weights(const Args& a, const Place& at) {
  if constexpr (kFilled) return weights_at(a, at);
  return {};
}

// The first half for a piece: its sums.
template <bool kFilled, int kHistory>
__device__ __forceinline__ uint32_t gather(const Args& a, const Place& at,
                                           Elements<kAdvanceElements, kHistory, true> g,
                                           WarpSums<kAdvanceThreads>& sums) {
  constexpr int V = kAdvanceElements;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (needs_defect(a.rule.criterion)) {
    if (!kFilled || !wants_defect(a, at)) return 0;
    double sum = 0;
    if (g.n > 0) sum = sum_defect(at, row_at(a.rows, a.width, at.index), weights_at(a, at), g);
    sum = warp_sum(sum);
    if (lane == 0) sums[kDefectColumn][warp] = sum;
    return 1u << kDefectColumn;
  }
  Place p = at;
  const int64_t most = p.index + 1 < a.rule.warmup ? 1 : most_steps(a, at);
  for (int64_t k = 0; k < most; ++k) {
    double third = 0, first = 0;
    if (g.n > 0) {
      float x_next[V];
      solve<kFilled>(a, p, row_at(a.rows, a.width, p.index), filled_weights<kFilled>(a, p), &g,
                     x_next);
      if (wants_third(a, p)) third = sum_third(g.n, x_next, g.x, g.x_1, g.x_2);
      first = sum_first(a, g.n, x_next, g.x);
      shift(x_next, &g);
    }
    third = warp_sum(third);
    first = warp_sum(first);
    if (lane == 0) {
      sums[2 * k + kThirdColumn][warp] = third;
      sums[2 * k + kFirstColumn][warp] = first;
    }
    step_past(&p);
  }
  return (1u << (2 * most)) - 1;
}

// What the decisions of a run read besides the sums, a step a lane of the first warp.
constexpr int kReady = 32;
using Ready = Besides[kReady];

// By a sample's last block: decides the whole run and leaves its length in the head. `ready` is in
// shared memory.
__device__ __forceinline__ void decide_run(const Args& a, int64_t b, uint32_t columns,
                                           Ready& ready) {
  const Place at = place_of(a, b);
  using Totals = double[kSums];
  AK_SHARED(Totals, totals);
  const int warp = threadIdx.x / 32;
  if (warp < kSums) {
    const bool wanted = columns >> warp & 1u;
    const double total = wanted ? column_total(column_of(a, at.b, warp), a.pieces) : 0.0;
    if (threadIdx.x % 32 == 0) totals[warp] = total;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const bool defect = needs_defect(a.rule.criterion);
  const int64_t most = most_steps(a, at);
  Place p = at;
  int32_t length = 0;
  Besides* r = ready;
  do {
    const int column = defect ? 0 : 2 * length;
    const Sums sums = {totals[column + kThirdColumn],
                       totals[column + kFirstColumn],
                       p.measures[0],
                       p.measures[1],
                       static_cast<double>(a.N),
                       totals[kDefectColumn],
                       0.0};
    if (length > 0) {
      Besides& next = ready[length % kReady];
      if (length >= kReady) next = besides(a, at, length);
      go_on(next, r);
    }
    conclude(a, &p, sums.first, sums, r);
    ++length;
  } while (p.run > 0 && length < most);
  save(a, p, *r);
  if (p.index == a.T && length > 1)
    set_timestep(a, at.b, row_at(a.rows, a.width, a.T - 2).timestep);
  tell_graph(a, p);
  head_of(a, at.b)->length = length;
}

// By the first warp, before decide_run().
__device__ __forceinline__ void get_ready(const Args& a, const Place& at, Ready& ready) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x);
  if (lane < most_steps(a, at)) ready[lane] = besides(a, at, lane);
}

// The length of a run that takes no sums.
__device__ __forceinline__ int64_t known_length(const Args& a, int64_t b) {
  Place at = place_of(a, b);
  const int64_t most = most_steps(a, at);
  int64_t length = 0;
  do {
    Besides r = besides(a, at);
    move_on(a, &at, 0.0, Sums{}, &r);
    ++length;
  } while (at.run > 0 && length < most);
  return length;
}

// The second half for a piece: takes the steps and writes what they leave.
template <bool kFilled, int kHistory>
__device__ __forceinline__ void run(const Args& a, Place at, int64_t length, float share,
                                    Elements<kAdvanceElements, kHistory, true>& g) {
  constexpr int V = kAdvanceElements;
  const auto write = [&](const float (&from)[V], float* to) { g.store(from, g.n, to + g.from); };
  for (int64_t k = 0; k < length; ++k) {
    const Row row = row_at(a.rows, a.width, at.index);
    float x_next[V];
    solve<kFilled>(a, at, row, filled_weights<kFilled>(a, at), &g, x_next);
    // What no step after the run reads is left out.
    if (k + latents_read(a.rule) >= length) write(x_next, ring(a, at, at.index + 1));
    if (a.K > 1 && k + a.K - 1 >= length) write(g.h, kept(a, at, at.index));
    if (kFilled && is_fresh(at)) {
      if (share != 0.0f) leave_share(filled_weights<kFilled>(a, at), share, g.e[1], g.e[2], g.e[0]);
      write(g.e[0], output(a, at, at.nfe));
    }
    // At the end of a sampling the input of its last step stays.
    if (at.index + 1 < a.T && (k + 1 == length || at.index + 2 == a.T))
      write_input(a, at, row, g, x_next);
    shift(x_next, &g);
    step_past(&at);
  }
}

}  // namespace ak
