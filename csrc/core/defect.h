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

// Takes in a defect of mean square `square`; `most`: the largest s2.
AK_HD void measure_defect(const Weights& w, double square, double most, Estimate* now) {
  const double spread = w.spread, rate = now->rate;
  if (!(most > 0.0) || !std::isfinite(square) || !std::isfinite(spread)) {
    now->rate = std::sqrt(square) * spread;
    return;
  }
  const double both = noise_of_fill(w, *now) + w.noise;
  if (now->variance == 0.0) {
    const double found = kGrows * square / both;
    now->variance = found < most ? found : most;
  }
  const double noise = now->variance * both;
  const double least = not_below_zero(square - (1.0 + kDoubt) * noise) * spread * spread;
  const double largest = not_below_zero(square - (1.0 - kDoubt) * noise) * spread * spread;
  double stands = kStands * rate * rate;
  if (!(std::isfinite(stands) && stands < largest)) stands = largest;
  now->rate = std::sqrt(stands < least ? least : stands);
}

// An output was kept: its own noise is P_0.
AK_HD void keep_noise(const Weights& w, Estimate* now) {
  const double share = now->share;
  const double own = (1.0 - share) * (1.0 - share) * w.noise;
  const double last = own + share * share * noise_of_fill(w, *now);
  for (int k = kOutputs - 1; k > 0; --k) now->noise[k] = now->noise[k - 1];
  now->noise[0] = last;
}

// For a refresh with these weights; 0 but for a line through the last two outputs.
AK_HD double share_of(const Weights& w, const Estimate& now) {
  // All in units of the rate: divisions are slow.
  const double square = static_cast<double>(w.spread) * w.spread;
  const double noise = now.variance * w.noise * square;
  const double fill = now.variance * noise_of_fill(w, now) * square;
  const double both = now.rate * now.rate + fill + noise;
  const double value = std::floor(noise / both * kShares + 0.5) * (1.0 / kShares);
  const bool usable = noise > 0.0 && std::isfinite(square) && w.f[0] != 0.0f && w.f[1] != 0.0f;
  return usable && value > 0.0 ? value : 0.0;
}

// What a run is predicted by: an entry of the rule table.
struct Predictors {
  float rate, fill[kOutputs], own;
};

AK_HD Predictors predictors_at(const float* entry) {
  return {entry[0], {entry[1], entry[2], entry[3]}, entry[4]};
}

AK_HD double predict_run(const Predictors& p, const Estimate& now) {
  const double clean = now.rate * p.rate;
  if (!(now.variance > 0.0)) return clean;
  double noise = 0.0;
  for (int k = 0; k < kOutputs; ++k) {
    const double a = p.fill[k];
    noise += a * a * now.noise[k];
  }
  noise = not_below_zero(noise - p.own);
  return std::sqrt(clean * clean + kNoiseCounts * now.variance * noise);
}

}  // namespace ak
