// The decision after a solver step: does the next step call the network?
//
// Whole steps are counted here, not network calls: a two-stage solver (stages = 2) decides once
// per whole step and its second stage follows the first. Knows no tensors; host and device.
#pragma once

#include <cmath>

#include "core/step.h"

namespace ak {

enum Criterion : int64_t {
  kNever = 0,
  kEvery = 1,
  kThirdOrder = 2,
  kReleased = 3,
  kDefect = 4,
  kPlan = 5
};

struct Rule {
  int64_t criterion;
  int64_t max_skip;  // every(k): k - 1
  int64_t warmup;    // whole steps that always call the network
  int64_t stages;    // network calls per whole step
  bool batch_wide;   // one decision from the sums over all samples
};

// Sums over one sample (or, batch-wide, over all): squares for third_order, absolute values for
// released. `first` is of the step just taken, first_1 and first_2 of the two before it.
struct Sums {
  double third, first, first_1, first_2;
  double elements;
  double defect;     // squares of what the fill was wrong by, at a refresh
  double predicted;  // of the next step, from FillTables.rule_table
};

AK_HD void add(const Sums& one, Sums* all) {
  all->third += one.third;
  all->first += one.first;
  all->first_1 += one.first_1;
  all->first_2 += one.first_2;
  all->elements += one.elements;
  all->defect += one.defect;
}

struct Decision {
  bool refresh;
  float score;  // left side over right side; NaN where the step was forced without one
};

constexpr int64_t kCriteria = 6;

// Whole steps before the first possible decision: four latents, or the authors' four calls.
AK_HD int64_t least_warmup(int64_t criterion) {
  return criterion == kReleased ? 4 : criterion == kThirdOrder ? 3 : 1;
}

AK_HD bool needs_third(int64_t criterion) { return criterion == kThirdOrder; }
AK_HD bool needs_first(int64_t criterion) {
  return criterion == kThirdOrder || criterion == kReleased;
}

// Beside third differences, first ones are summed in squares, else in absolute value.
AK_HD bool sums_squares(int64_t criterion) { return needs_third(criterion); }

AK_HD bool needs_defect(int64_t criterion) { return criterion == kDefect; }

// Of what the rule looks up, besides what it measures.
AK_HD bool needs_table(int64_t criterion) { return criterion == kDefect || criterion == kPlan; }

// Latents that a step reads: its own, and those of the steps before it.
AK_HD int64_t latents_read(const Rule& rule) {
  if (needs_third(rule.criterion)) return 3 * rule.stages;
  return needs_first(rule.criterion) ? rule.stages : 1;
}

// Rows a sample can take on one network output, refresh included. `released` may skip five times
// before its guard wakes.
AK_HD int64_t longest_run(const Rule& rule, int64_t steps) {
  const bool late = rule.criterion == kReleased && rule.max_skip < 5;
  const int64_t wanted = rule.criterion == kNever ? 0 : late ? 5 : rule.max_skip;
  const int64_t skips = wanted < steps ? wanted : steps;  // max_skip may be as large as int64
  const int64_t run = (skips + 1) * rule.stages;          // it may have begun at a first stage
  return run < steps ? run : steps;
}

// A tie of two zeros scores 1, as any other tie.
AK_HD float ratio(double left, double right) {
  return left == 0.0 && right == 0.0 ? 1.0f : static_cast<float>(left / right);
}

// `step` is the row just done, `run` the rows done on the current network output, this one
// included. Comparisons are written so that NaN calls the network.
AK_HD Decision decide(const Rule& rule, int64_t step, int64_t run, const Sums& sums,
                      double threshold) {
  const float none = NAN;
  const int64_t next = whole_steps(step + 1, rule.stages);
  if (slot(step + 1, rule.stages) != 0) return {run == 1, none};
  if (rule.criterion == kNever || next < rule.warmup) return {true, none};

  const int64_t skipped = whole_steps(run - 1, rule.stages);
  if (rule.criterion == kPlan) return {!(sums.predicted <= 0.0), none};
  if (rule.criterion == kEvery) return {skipped >= rule.max_skip, none};

  if (rule.criterion == kThirdOrder) {
    const double left = std::sqrt(sums.third);
    const double right = threshold * std::sqrt(sums.first_1);
    return {skipped >= rule.max_skip || !(left < right), ratio(left, right)};
  }

  if (rule.criterion == kDefect)
    return {skipped >= rule.max_skip || !(sums.predicted <= threshold),
            ratio(sums.predicted, threshold)};

  const double d = sums.first / sums.elements;
  const double d1 = sums.first_1 / sums.elements;
  const double d2 = sums.first_2 / sums.elements;
  const double left = std::fabs((d + d2) / 2 - d1);
  const double right = threshold * d1;
  // The authors' guard: it sees the decisions taken before this one and is idle below five.
  const int64_t decisions = next - 4;
  const int64_t window = rule.max_skip < decisions ? rule.max_skip : decisions;
  const bool guarded = decisions >= 5 && skipped >= window;
  return {guarded || !(left <= right), ratio(left, right)};
}

}  // namespace ak
