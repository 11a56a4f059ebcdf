// The end of `step` on a GPU: the last block adds the sums of all pieces and decides.
#pragma once

#include "cuda/grid/barrier.h"
#include "cuda/grid/condition.h"
#include "cuda/grid/sums.h"
#include "op/progress.h"

namespace ak {

// Sums of a step, as a mask of columns.
__device__ __forceinline__ uint32_t columns_of(const Args& a, const Place& at) {
  return (wants_third(a, at) ? 1u << kThirdColumn : 0u) |
         (wants_first(a, at) ? 1u << kFirstColumn : 0u) |
         (wants_defect(a, at) ? 1u << kDefectColumn : 0u);
}

// By a whole block: the sums of a sample's step from all its pieces, and what its decision reads
// besides, into shared memory.
__device__ __forceinline__ Sums add_up(const Args& a, const Place& at, Besides* r) {
  using Totals = double[3];
  AK_SHARED(Totals, totals);
  const int warp = threadIdx.x / 32;
  __syncthreads();
  if (warp < 3) {
    const bool wanted = columns_of(a, at) >> warp & 1u;
    const double total = wanted ? column_total(column_of(a, at.b, warp), a.pieces) : 0.0;
    if (threadIdx.x % 32 == 0) totals[warp] = total;
  } else if (threadIdx.x == 3 * 32) {
    *r = besides(a, at);
  }
  __syncthreads();
  return {totals[kThirdColumn],
          totals[kFirstColumn],
          at.measures[0],
          at.measures[1],
          static_cast<double>(a.N),
          totals[kDefectColumn],
          0.0};
}

// By one thread.
__device__ __forceinline__ void finish(const Args& a, Place at, double first, const Sums& sums,
                                       Besides* r) {
  conclude(a, &at, first, sums, r);
  save(a, at, *r);
  tell_graph(a, at);
}

// By a sample's last block.
__device__ __forceinline__ void finish_alone(const Args& a, int64_t b, Besides* r) {
  const Place at = place_of(a, b);
  const Sums sums = add_up(a, at, r);
  if (threadIdx.x == 0) finish(a, at, sums.first, sums, r);
}

// By the batch's last block: one decision from the sums over all samples.
__device__ __forceinline__ void finish_together(const Args& a, bool fresh, Besides* r) {
  Sums all = {};
  for (int64_t b = 0; b < a.B; ++b) {
    const Place at = place_of(a, b);
    if (!moves(a, at, fresh)) continue;
    const Sums sums = add_up(a, at, r);
    add(sums, &all);
    if (threadIdx.x == 0) head_of(a, b)->first = sums.first;
  }
  if (threadIdx.x != 0) return;
  for (int64_t b = 0; b < a.B; ++b) {
    const Place at = place_of(a, b);
    if (moves(a, at, fresh)) {
      *r = besides(a, at);
      finish(a, at, head_of(a, b)->first, all, r);
    } else {
      tell_graph(a, at);
    }
  }
}

}  // namespace ak
