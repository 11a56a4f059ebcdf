// The end of `step` on a GPU: one block adds the sums of all pieces and decides.
#pragma once

#include "cuda/grid/condition.h"
#include "cuda/grid/sums.h"
#include "cuda/variant.h"
#include "op/progress.h"

namespace ak {

// By a whole block of kStrands threads: the decision of the sample at `own`, or with `together` of
// all samples at once, from the sums over all that move.
template <typename V>
__device__ __forceinline__ void finish(const Args& a, const Place& own, bool fresh, bool together) {
  using Totals = StrandSums[2];
  AK_SHARED(Totals, totals);
  AK_SHARED(Besides, ready);
  constexpr int kClerk = kStrands - 32;  // of the warp with the fewest messages
  const int64_t begin = together ? 0 : own.b, end = together ? a.B : own.b + 1;
  Sums all = {};
  // Together: once for the sums of all, then for the decisions.
#pragma unroll 1
  for (int pass = together ? 0 : 1; pass < 2; ++pass) {
#pragma unroll 1
    for (int64_t b = begin; b < end; ++b) {
      Place at = own;
      if (together) at = place_of(a, b);
      if (!together) read_measures(a, &at);
      const bool moving = moves(a, at, fresh), adds = moving && (pass == 0 || !together);
      const uint32_t number = launch_number(a, b);
      if (moving && pass == 1 && threadIdx.x == kClerk) ready = besides(a, at);
      if (V::columns > 0 && adds)
        add_messages<1>(a, b, number, threadIdx.x / 32, 0, V::columns > 1, totals);
      __syncthreads();
      if (threadIdx.x == 0) {
        Sums sums = {0, 0, at.measures[0], at.measures[1], static_cast<double>(a.N), 0, 0};
        if (V::summed == kSumThird) sums.third = groups_sum(totals[kThirdColumn]);
        if (V::summed == kSumThird || V::summed == kSumFirst)
          sums.first = groups_sum(totals[kFirstColumn<V>]);
        if (V::summed == kSumDefect) sums.defect = groups_sum(totals[kDefectColumn]);
        if (pass == 0) {
          if (moving) add(sums, &all), head_of(a, b)->first = sums.first;
        } else {
          if (moving) {
            const double first = together ? head_of(a, b)->first : sums.first;
            if (together) sums = all;
            conclude(a, &at, first, sums, &ready);
            save(a, at, ready);
            head_of(a, b)->launches = number;
          }
          tell_graph(a, at);
        }
      }
      __syncthreads();
    }
  }
}

}  // namespace ak
