// What the rule `defect` keeps of a sample between its refreshes: the rate of the fill's error, and
// how noisy a half-precision network's outputs are. adaptive_kernels/rules/defect.py has the
// formulas. Knows no tensors; host and device, in float64, operation by operation the same.
#pragma once

#include <cmath>

#include "core/step.h"

namespace ak {

// Columns of a sample's `measures` under this rule.
enum DefectMeasure : int {
  kRate = 0,
  kVariance = 1,         // s2, of the noise of a guided output
  kNoise = 2,            // P_0 .. P_2, of the kept outputs, in units of s2
  kShare = 2 + kOutputs  // of its defect that the next refresh leaves out of what it keeps
};

// An entry of the rule table: per unit of the rate, a_0 .. a_2 and b of the noise.
constexpr int64_t kPredictors = 2 + kOutputs;

constexpr double kDoubt = 0.5;
constexpr double kStands = 0.4;
constexpr double kNoiseCounts = 0.12;
constexpr double kGrows = 1.1;
constexpr double kShares = 256.0;

AK_HD double not_below_zero(double value) { return value < 0.0 ? 0.0 : value; }

// Those of one sample.
struct Estimate {
  double rate, variance, noise[kOutputs], share;
};

AK_HD Estimate estimate_at(const double* measures) {
  return {measures[kRate],
          measures[kVariance],
          {measures[kNoise], measures[kNoise + 1], measures[kNoise + 2]},
          measures[kShare]};
}

AK_HD void save(const Estimate& now, double* measures) {
  measures[kRate] = now.rate;
  measures[kVariance] = now.variance;
  for (int k = 0; k < kOutputs; ++k) measures[kNoise + k] = now.noise[k];
  measures[kShare] = now.share;
}

// V of a fill.
AK_HD double noise_of_fill(const Weights& w, const Estimate& now) {
  double sum = 0.0;
  for (int k = 0; k < kOutputs; ++k) {
    const double f = w.f[k];
    sum += f * f * now.noise[k];
  }
  return sum;
}

// Takes in a defect of mean square `square`, whose noise is `both` = V + R in units of s2; `most`:
// the largest s2. A spread below zero belongs to a fill of one output, whose defect tells no noise.
AK_HD void measure_defect(float spread_of, double both, double square, double most, Estimate* now) {
  const double spread = std::fabs(static_cast<double>(spread_of)), rate = now->rate;
  if (!(most > 0.0) || spread_of < 0.0f || !std::isfinite(square) || !std::isfinite(spread)) {
    now->rate = std::sqrt(square) * spread;
    return;
  }
  const bool first = now->variance == 0.0;
  if (first) {
    const double found = kGrows * square / both;
    now->variance = found < most ? found : most;
  }
  const double noise = now->variance * both;
  const double least = not_below_zero(square - (1.0 + kDoubt) * noise) * spread * spread;
  const double largest = not_below_zero(square - (1.0 - kDoubt) * noise) * spread * spread;
  // What the rate was before the first measure is of another order.
  double stands = first ? INFINITY : kStands * rate * rate;
  if (!(std::isfinite(stands) && stands < largest)) stands = largest;
  now->rate = std::sqrt(stands < least ? least : stands);
}

// An output was kept, whose fill has the noise `fill` = V: its own is P_0.
AK_HD void keep_noise(const Weights& w, double fill, Estimate* now) {
  const double share = now->share;
  const double own = (1.0 - share) * (1.0 - share) * w.noise;
  const double last = own + share * share * fill;
  for (int k = kOutputs - 1; k > 0; --k) now->noise[k] = now->noise[k - 1];
  now->noise[0] = last;
}

// What a refresh to come has of noise, in units of s2 and of its rate's: its own and its fill's.
struct Ahead {
  double own, fill;
};

// For a refresh with these weights; nothing but for a line through the last two outputs.
AK_HD Ahead ahead_of(const Weights& w, const Estimate& now) {
  const double square = static_cast<double>(w.spread) * w.spread;
  if (!std::isfinite(square) || w.f[0] == 0.0f || w.f[1] == 0.0f) return {0.0, 0.0};
  return {w.noise * square, noise_of_fill(w, now) * square};
}

AK_HD double share_of(const Ahead& ahead, const Estimate& now) {
  const double noise = now.variance * ahead.own;
  const double both = now.rate * now.rate + now.variance * ahead.fill + noise;
  const double value = std::floor(noise / both * kShares + 0.5) * (1.0 / kShares);
  return noise > 0.0 && value > 0.0 ? value : 0.0;
}

// The noise of a run beyond that of the calls it saves, in units of s2; `entry` of the rule table.
AK_HD double noise_of_run(const float* entry, const Estimate& now) {
  double noise = 0.0;
  for (int k = 0; k < kOutputs; ++k) {
    const double a = entry[1 + k];
    noise += a * a * now.noise[k];
  }
  return not_below_zero(noise - entry[1 + kOutputs]);
}

// The error predicted of a run, `per_rate` without noise.
AK_HD double predict_run(float per_rate, double noise, const Estimate& now) {
  const double clean = now.rate * per_rate;
  if (!(now.variance > 0.0)) return clean;
  return std::sqrt(clean * clean + kNoiseCounts * now.variance * noise);
}

}  // namespace ak
