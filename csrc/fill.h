// What the fill, the repair and the rule `defect` look up for a sample; on the device.
#pragma once

#include "step_args.h"

namespace ak {

// Whether the counters of sample b can be those of a sampling; reads are bound by them.
AK_HD bool is_progress(const Args& a, int64_t b) {
  return a.index[b] >= 0 && a.run[b] >= 0 && a.nfe[b] >= 0 && a.before[b] >= 0 &&
         a.before[b] <= a.newest[b] && a.newest[b] <= a.index[b];
}

// Weights of the step i of sample b, by the distances to its last two refreshes.
AK_HD Weights weights_at(const Args& a, int64_t b, int64_t i) {
  const int64_t gap = distance(i - a.newest[b], a.G);
  const int64_t previous = distance(a.newest[b] - a.before[b], a.G);
  const float* w = a.weights + ((i * a.G + gap) * a.G + previous) * kWeights;
  return {{w[0], w[1], w[2]}, {w[3], w[4], w[5]}, w[6]};
}

// What the rule predicts for `step`, were it the `skips`-th skipped one in a row.
AK_HD double predict(const Args& a, int64_t b, int64_t step, int64_t skips) {
  if (a.rule.criterion == kPlan) return a.run_cost[step * a.G * a.Q];
  if (a.rule.criterion != kDefect) return 0.0;
  const int64_t gap = distance(a.newest[b] - a.before[b], a.G);
  const int64_t at = (a.newest[b] * a.G + gap) * a.Q + distance(skips, a.Q);
  return a.norms[2 * b] * static_cast<double>(a.run_cost[at]);
}

// Marks a network call of sample b at its step.
AK_HD void count_refresh(const Args& a, int64_t b) {
  a.nfe[b] += 1;
  a.refreshed[a.index[b] * a.B + b] = true;
  a.before[b] = a.newest[b];
  a.newest[b] = a.index[b];
}

}  // namespace ak
