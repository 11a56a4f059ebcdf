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

// Where the run of a sample is predicted from, were the step it stands at the next skipped one.
AK_HD const float* predictors_of(const Args& a, const Place& at) {
  const int64_t skips = (at.run - 1) / a.rule.stages + 1;
  const int64_t gap = distance(at.last_call - at.call_before, a.G);
  return a.rule_table + ((at.last_call * a.G + gap) * a.Q + distance(skips, a.Q)) * kPredictors;
}

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
  Place after = at;
  step_past(&after);
  after.run += later, after.index += later;
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

// A run goes on: what `next` has of a later step takes the place of the last one's; what the first
// step measured stands.
AK_HD void go_on(const Besides& next, Besides* r) {
  r->timestep = next.timestep, r->asked = next.asked;
  r->per_rate = next.per_rate, r->of_run = next.of_run;
  r->ahead = next.ahead;
}

// Moves a sample past the step it stands at, and decides about the next one. `sums` are those of
// all samples where they decide together; `first` is the sample's own.
AK_HD Decision move_on(const Args& a, Place* at, double first, Sums sums, Besides* r) {
  const int64_t step = at->index;
  const bool defect = needs_defect(a.rule.criterion);
  sums.predicted = r->asked;
  if (defect) {
    if (wants_defect(a, *at))
      measure_defect(r->spread, r->both, sums.defect / sums.elements, r->most, &r->now);
    sums.predicted = predict_run(r->per_rate, r->of_run, r->now);
  }
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

// The same, with the trace of it written.
AK_HD void conclude(const Args& a, Place* at, double first, const Sums& sums, Besides* r) {
  if (is_fresh(*at)) a.refreshed[at->index * a.B + at->b] = true;
  const Decision decision = move_on(a, at, first, sums, r);
  if (at->index == a.T) return;
  a.refreshed[at->index * a.B + at->b] = decision.refresh;
  a.score[at->index * a.B + at->b] = decision.score;
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
