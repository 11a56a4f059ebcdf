// The decision about a sample's whole run, by one warp: lane k decides about step k as if no step
// before it had called the network, and the first that does ends the run.
#pragma once

#include "cuda/advance_run.h"
#include "cuda/grid/condition.h"

namespace ak {

// What decides, in the shared memory of a block.
template <typename V>
struct Deciding {
  StrandSums totals[kRunColumns<V> > 0 ? kRunColumns<V> : 1];
  Besides ready[32];
};

// By the first warp: what the first 32 decisions read besides the sums.
template <typename V>
__device__ __forceinline__ void get_ready(const Args& a, const Place& at, Deciding<V>* deciding) {
  const int lane = threadIdx.x % 32;
  if (lane < most_steps(a, at)) deciding->ready[lane] = besides(a, at, lane);
}

// By the other warps of the block: the sums of all messages.
template <typename V, int kThreads>
__device__ __forceinline__ void add_run(const Args& a, int64_t b, uint32_t number, int columns,
                                        Deciding<V>* deciding) {
  constexpr int kWarps = kThreads / 32 - 1;
  const int pairs = (columns + 1) / 2;
  const int groups = static_cast<int>(least((messages(a) + 31) / 32, kGroups));
  for (int task = static_cast<int>(threadIdx.x) / 32 - 1; task < pairs * groups; task += kWarps) {
    const int column = 2 * (task / groups);
    add_messages<4>(a, b, number, task % groups, column, column + 1 < columns, deciding->totals);
  }
}

// A column's total; strands without messages have none.
template <typename V>
__device__ __forceinline__ double total_of(const Args& a, const Deciding<V>& deciding, int column) {
  const int64_t groups = (messages(a) + 31) / 32;
  double s[kGroups];
#pragma unroll
  for (int j = 0; j < kGroups; ++j) s[j] = j < groups ? deciding.totals[column][j] : 0.0;
  return groups_sum(s);
}

// A lane's sums, of the step `lane` of the run.
template <typename V>
__device__ __forceinline__ Sums sums_of_lane(const Args& a, const Place& at, int columns,
                                             const Deciding<V>& deciding) {
  const int lane = threadIdx.x % 32;
  const double* measures = measures_of(a, at.b);
  Sums sums = {0, 0, measures[0], measures[1], static_cast<double>(a.N), 0, 0};
  if constexpr (V::columns > 0) {
    const double mine = lane < columns ? total_of(a, deciding, lane) : 0.0;
    if constexpr (V::summed == kSumDefect) {
      sums.defect = __shfl_sync(kWholeWarp, mine, kDefectColumn);
    } else {
      const auto total = [&](int step, int column) {
        const int source = V::columns * step + column;
        return __shfl_sync(kWholeWarp, mine, source >= 0 && source < 32 ? source : 0);
      };
      if constexpr (V::summed == kSumThird) sums.third = total(lane, kThirdColumn);
      sums.first = total(lane, kFirstColumn<V>);
      const double first_1 = total(lane - 1, kFirstColumn<V>);
      const double first_2 = total(lane - 2, kFirstColumn<V>);
      if (lane > 0) sums.first_2 = lane > 1 ? first_2 : measures[0], sums.first_1 = first_1;
    }
  }
  return sums;
}

// The run that a warp has found.
struct Run {
  int64_t length;
  Place after;  // of the lane that ends it
  bool ends;    // whether that is this lane
};

// By a whole warp: decides the run; with `writes` its trace too. A lane's numbers are then what the
// sample keeps after its step. `ready`: whether those of the first 32 steps are there.
template <typename V>
__device__ __forceinline__ Run decide_run(const Args& a, const Place& at, int columns, bool ready,
                                          bool writes, Deciding<V>* deciding) {
  const int lane = threadIdx.x % 32;
  const int64_t most = most_steps(a, at);
  const Sums sums = sums_of_lane(a, at, columns, *deciding);
  Besides* own = &deciding->ready[lane];
  Run run = {};
  if (writes && lane == 0 && is_fresh(at)) a.refreshed[at.index * a.B + at.b] = true;
#pragma unroll 1
  for (int64_t begin = 0; run.length == 0; begin += 32) {
    const int32_t step = static_cast<int32_t>(begin) + lane;
    const bool mine = step < most;
    if (mine && (begin > 0 || !ready)) *own = besides(a, at, step);
    Decision decision = {false, NAN};
    if (mine) {
      run.after = along(at, step);
      run.after.measures[0] = sums.first_1, run.after.measures[1] = sums.first_2;
      take_defect(a, at, sums, own);
      decision = move_on(a, &run.after, sums.first, sums, own);
    }
    const unsigned ends = __ballot_sync(kWholeWarp, mine && (decision.refresh || step == most - 1));
    const int last = ends ? __ffs(static_cast<int>(ends)) - 1 : 31;
    if (ends) run.length = begin + last + 1;
    if (writes && mine && lane <= last) write_trace(a, run.after, decision);
    run.ends = ends && lane == last;
  }
  return run;
}

// By the lane that ends the run: where it leaves the sample.
template <typename V>
__device__ __forceinline__ void save_run(const Args& a, const Run& run, uint32_t number,
                                         const Deciding<V>& deciding) {
  save(a, run.after, deciding.ready[threadIdx.x % 32]);
  if (run.after.index == a.T && run.length > 1)
    set_timestep(a, run.after.b, row_at(a.rows, a.width, a.T - 2).timestep);
  head_of(a, run.after.b)->launches = number;
  tell_graph(a, run.after);
}

// By a whole block, whose sums were sent: the run's length, decided here or waited for. The first
// warp decides while the others add.
template <typename V, int kThreads>
__device__ __forceinline__ void agree(const Args& a, int64_t b, bool decides, Item* now,
                                      Deciding<V>* deciding) {
  if (!decides) {
    if (threadIdx.x == 0) settle(now, wait_for(&head_of(a, b)->length, now->number));
    return;
  }
  if (threadIdx.x < 32)
    get_ready(a, now->at, deciding);
  else
    add_run<V, kThreads>(a, b, now->number, now->columns, deciding);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const Run run = decide_run(a, now->at, now->columns, true, true, deciding);
  if (!run.ends) return;
  send(&head_of(a, b)->length, static_cast<uint32_t>(run.length), now->number);
  settle(now, run.length);
  save_run(a, run, now->number, *deciding);
}

}  // namespace ak
