// Where a sample stands, and what it looks up there; host and device.
#pragma once

#include "op/args.h"

namespace ak {

struct Place {
  int64_t b;
  int32_t index, run, nfe, last_call, call_before;
  double measures[2];  // of differences; those of `defect` stay where they are
};

AK_HD double* measures_of(const Args& a, int64_t b) { return a.measures + kMeasures * b; }

AK_HD void read_measures(const Args& a, Place* at) {
  for (int k = 0; k < 2; ++k) at->measures[k] = measures_of(a, at->b)[k];
}

AK_HD Place place_of(const Args& a, int64_t b) {
  const int32_t* p = a.progress + b;
  Place at = {
      b, p[kIndex * a.B], p[kRun * a.B], p[kNfe * a.B], p[kLastCall * a.B], p[kCallBefore * a.B],
      {}};
  read_measures(a, &at);
  return at;
}

// Whether these can be the counters of a sampling; reads are bound by them. Without branches: a
// compiler would put the loads of the later counters behind them.
AK_HD bool is_possible(const Place& at) {
  return (at.index >= 0) & (at.run >= 0) & (at.nfe >= 0) & (at.call_before >= 0) &
         (at.call_before <= at.last_call) & (at.last_call <= at.index);
}

AK_HD bool moves(const Args& a, const Place& at, bool fresh) {
  return is_possible(at) & (at.index < a.T) & ((at.run > 0) | fresh);
}

AK_HD bool is_fresh(const Place& at) { return at.run == 0; }

// Whether the step ends a whole step.
AK_HD bool is_boundary(const Args& a, const Place& at) {
  return slot(at.index + 1, a.rule.stages) == 0;
}

AK_HD bool wants_first(const Args& a, const Place& at) {
  return needs_first(a.rule.criterion) && is_boundary(a, at);
}

AK_HD bool wants_third(const Args& a, const Place& at) {
  return needs_third(a.rule.criterion) && is_boundary(a, at) && at.index + 1 >= 3 * a.rule.stages;
}

AK_HD bool wants_defect(const Args& a, const Place& at) {
  return needs_defect(a.rule.criterion) && is_boundary(a, at) && is_fresh(at);
}

// Weights of the step, by the distances to the last two refreshes.
AK_HD const float* weights_of(const Args& a, const Place& at) {
  const int64_t gap = distance(at.index - at.last_call, a.G);
  const int64_t previous = distance(at.last_call - at.call_before, a.G);
  return a.weights + ((at.index * a.G + gap) * a.G + previous) * kWeights;
}

AK_HD Weights weights_at(const Args& a, const Place& at) {
  const float* w = weights_of(a, at);
  return {{w[0], w[1], w[2]}, {w[3], w[4], w[5]}, w[6], w[7]};
}

// Of its defect that this refresh leaves out of what it keeps.
AK_HD float share_at(const Args& a, const Place& at) {
  return wants_defect(a, at) ? static_cast<float>(measures_of(a, at.b)[kShare]) : 0.0f;
}

// The counters of a sample one step on, before the decision.
AK_HD void step_past(Place* at) {
  if (is_fresh(*at)) {
    at->nfe += 1;
    at->call_before = at->last_call;
    at->last_call = at->index;
  }
  at->run += 1;
  at->index += 1;
}

// The same, `later` further steps into a run none of whose steps called the network again.
AK_HD Place along(Place at, int32_t later) {
  if (later == 0) return at;
  step_past(&at);
  at.run += later - 1, at.index += later - 1;
  return at;
}

// Where the run of a sample is predicted from, were the step it stands at the next skipped one.
AK_HD const float* predictors_of(const Args& a, const Place& at) {
  const int64_t skips = whole_steps(at.run - 1, a.rule.stages) + 1;
  const int64_t gap = distance(at.last_call - at.call_before, a.G);
  return a.rule_table + ((at.last_call * a.G + gap) * a.Q + distance(skips, a.Q)) * kPredictors;
}

}  // namespace ak
