// How a step moves a sample on: what its decision reads, the decision, and what is kept of both;
// host and device.
#pragma once

#include "core/defect.h"
#include "op/place.h"

namespace ak {

// What a decision reads besides the sums, and what `defect` makes of it. On a GPU other threads get
// it ready while the sums are added.
struct Besides {
  float threshold, timestep;  // timestep: of the step after
  float asked;                // under `plan`
  float spread, per_rate;     // from here on: under `defect`
  double most;                // the largest variance that counts as noise
  double both;                // noise of the defect, in units of the variance
  double of_run;              // and of the run
  Ahead ahead;                // were the next step to call the network
  Estimate now;               // its noise is that after the step
};

// Of the step that a sample at `at` takes, or of one `later` in the same run.
AK_HD Besides besides(const Args& a, const Place& at, int32_t later = 0) {
  Place after = along(at, later + 1);
  Besides r = {};
  r.threshold = a.threshold[at.b];
  r.timestep = row_at(a.rows, a.width, after.index - 1).timestep;
  if (a.rule.criterion == kPlan && after.index < a.T)
    r.asked = a.rule_table[after.index * a.G * a.Q * kPredictors];
  if (!needs_defect(a.rule.criterion)) return r;
  const float* entry = predictors_of(a, after);
  const double size = a.output_noise[at.b];
  r.now = estimate_at(measures_of(a, at.b));
  r.per_rate = entry[0];
  r.most = size * size;
  if (is_fresh(at)) {
    const Weights w = weights_at(a, at);
    r.spread = w.spread;
    if (r.most > 0.0) {
      const double fill = noise_of_fill(w, r.now);
      r.both = fill + w.noise;
      keep_noise(w, fill, &r.now);
    }
  }
  if (!(r.most > 0.0)) return r;
  r.of_run = noise_of_run(entry, r.now);
  after.run = 0;
  if (after.index < a.T && is_boundary(a, after)) r.ahead = ahead_of(weights_at(a, after), r.now);
  return r;
}

// Takes in the defect of the refresh that a sample at `at` stands at, if it does, for the decision
// about that step or a later one of its run.
AK_HD void take_defect(const Args& a, const Place& at, const Sums& sums, Besides* r) {
  if (wants_defect(a, at))
    measure_defect(r->spread, r->both, sums.defect / sums.elements, r->most, &r->now);
}

// Moves a sample past the step it stands at, and decides about the next one. `sums` are those of
// all samples where they decide together; `first` is the sample's own.
AK_HD Decision move_on(const Args& a, Place* at, double first, Sums sums, Besides* r) {
  const int64_t step = at->index;
  const bool defect = needs_defect(a.rule.criterion);
  sums.predicted = defect ? predict_run(r->per_rate, r->of_run, r->now) : r->asked;
  if (wants_first(a, *at)) {
    at->measures[1] = at->measures[0];
    at->measures[0] = first;
  }
  step_past(at);
  Decision decision = {true, NAN};
  if (at->index < a.T) decision = decide(a.rule, step, at->run, sums, r->threshold);
  if (decision.refresh) at->run = 0;
  if (defect && r->most > 0.0) r->now.share = decision.refresh ? share_of(r->ahead, r->now) : 0.0;
  return decision;
}

// Writes the trace of a decision, of a sample that has moved to `at`.
AK_HD void write_trace(const Args& a, const Place& at, const Decision& decision) {
  if (at.index == a.T) return;
  a.refreshed[at.index * a.B + at.b] = decision.refresh;
  a.score[at.index * a.B + at.b] = decision.score;
}

// A step of a sample: its defect, its decision and the trace of it.
AK_HD void conclude(const Args& a, Place* at, double first, const Sums& sums, Besides* r) {
  if (is_fresh(*at)) a.refreshed[at->index * a.B + at->b] = true;
  take_defect(a, *at, sums, r);
  write_trace(a, *at, move_on(a, at, first, sums, r));
}

// Writes where a sample that moved stands now, what its rule keeps, and the timestep its network is
// fed next.
AK_HD void save(const Args& a, const Place& at, const Besides& r) {
  int32_t* p = a.progress + at.b;
  p[kIndex * a.B] = at.index;
  p[kRun * a.B] = at.run;
  p[kNfe * a.B] = at.nfe;
  p[kLastCall * a.B] = at.last_call;
  p[kCallBefore * a.B] = at.call_before;
  if (needs_defect(a.rule.criterion)) save(r.now, measures_of(a, at.b));
  if (needs_first(a.rule.criterion))
    for (int k = 0; k < 2; ++k) measures_of(a, at.b)[k] = at.measures[k];
  if (at.index < a.T) set_timestep(a, at.b, r.timestep);
}

}  // namespace ak
