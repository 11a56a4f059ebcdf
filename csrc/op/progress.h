// Where a sample stands, what it looks up there, and how a step moves it on; host and device.
#pragma once

#include "core/defect.h"
#include "op/args.h"

namespace ak {

struct Place {
  int64_t b;
  int32_t index, run, nfe, last_call, call_before;
  double measures[2];  // of differences; those of `defect` stay where they are
};

AK_HD double* measures_of(const Args& a, int64_t b) { return a.measures + kMeasures * b; }

AK_HD Place place_of(const Args& a, int64_t b) {
  const int32_t* p = a.progress + b;
  const double* m = measures_of(a, b);
  return {b,
          p[kIndex * a.B],
          p[kRun * a.B],
          p[kNfe * a.B],
          p[kLastCall * a.B],
          p[kCallBefore * a.B],
          {m[0], m[1]}};
}

// Whether these can be the counters of a sampling; reads are bound by them.
AK_HD bool is_possible(const Place& at) {
  return at.index >= 0 && at.run >= 0 && at.nfe >= 0 && at.call_before >= 0 &&
         at.call_before <= at.last_call && at.last_call <= at.index;
}

AK_HD bool moves(const Args& a, const Place& at, bool fresh) {
  return is_possible(at) && at.index < a.T && (at.run > 0 || fresh);
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

// What the rule predicts for the step, were it the next skipped one in a row.
AK_HD double predict(const Args& a, const Place& at) {
  if (a.rule.criterion == kPlan) return a.rule_table[at.index * a.G * a.Q * kPredictors];
  if (a.rule.criterion != kDefect) return 0.0;
  const int64_t skips = (at.run - 1) / a.rule.stages + 1;
  const int64_t gap = distance(at.last_call - at.call_before, a.G);
  const int64_t entry = (at.last_call * a.G + gap) * a.Q + distance(skips, a.Q);
  return predict_run(a.rule_table + entry * kPredictors, measures_of(a, at.b));
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

// Moves a sample past the step it stands at, and decides about the next one. `sums` are those of
// all samples where they decide together; `first` is the sample's own.
AK_HD Decision move_on(const Args& a, Place* at, double first, Sums sums) {
  const int64_t step = at->index;
  const bool defect = needs_defect(a.rule.criterion);
  const double size = defect ? a.output_noise[at->b] : 0.0f, most = size * size;
  double* measures = measures_of(a, at->b);
  if (wants_defect(a, *at))
    measure_defect(weights_of(a, *at), sums.defect / sums.elements, most, measures);
  if (most > 0.0 && is_fresh(*at)) keep_noise(weights_of(a, *at), measures);
  if (wants_first(a, *at)) {
    at->measures[1] = at->measures[0];
    at->measures[0] = first;
  }
  step_past(at);
  Decision decision = {true, NAN};
  if (at->index < a.T) {
    sums.predicted = predict(a, *at);
    decision = decide(a.rule, step, at->run, sums, a.threshold[at->b]);
  }
  if (!decision.refresh) return decision;
  at->run = 0;
  if (most > 0.0 && at->index < a.T)
    measures[kShare] = wants_defect(a, *at) ? share_of(weights_of(a, *at), measures) : 0.0;
  return decision;
}

// The same, with the trace of it written.
AK_HD void conclude(const Args& a, Place* at, double first, const Sums& sums) {
  if (is_fresh(*at)) a.refreshed[at->index * a.B + at->b] = true;
  const Decision decision = move_on(a, at, first, sums);
  if (at->index == a.T) return;
  a.refreshed[at->index * a.B + at->b] = decision.refresh;
  a.score[at->index * a.B + at->b] = decision.score;
}

// Writes where a sample that moved stands now, and the timestep its network is fed next.
AK_HD void save(const Args& a, const Place& at) {
  int32_t* p = a.progress + at.b;
  p[kIndex * a.B] = at.index;
  p[kRun * a.B] = at.run;
  p[kNfe * a.B] = at.nfe;
  p[kLastCall * a.B] = at.last_call;
  p[kCallBefore * a.B] = at.call_before;
  if (needs_first(a.rule.criterion))
    for (int k = 0; k < 2; ++k) measures_of(a, at.b)[k] = at.measures[k];
  if (at.index < a.T) set_timestep(a, at.b, row_at(a.rows, a.width, at.index - 1).timestep);
}

}  // namespace ak
