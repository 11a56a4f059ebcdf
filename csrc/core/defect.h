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
constexpr double kNoiseCounts = 0.1;
constexpr double kShares = 256.0;

AK_HD double not_below_zero(double value) { return value < 0.0 ? 0.0 : value; }

// Entries of the weights and measures are read and written where they are: one thread does so once
// a step, and no other has registers for it.
constexpr int kSpreadWeight = 2 * kOutputs, kNoiseWeight = 2 * kOutputs + 1;

// V of a fill.
AK_HD double noise_of_fill(const float* w, const double* measures) {
  double sum = 0.0;
  for (int k = 0; k < kOutputs; ++k) {
    const double f = w[k];
    sum += f * f * measures[kNoise + k];
  }
  return sum;
}

// Takes in a defect of mean square `square`; `most`: the largest s2.
AK_HD void measure_defect(const float* w, double square, double most, double* measures) {
  const double spread = w[kSpreadWeight], rate = measures[kRate];
  if (!(most > 0.0) || !std::isfinite(square) || !std::isfinite(spread)) {
    measures[kRate] = std::sqrt(square) * spread;
    return;
  }
  const double both = noise_of_fill(w, measures) + w[kNoiseWeight];
  if (measures[kVariance] == 0.0) {
    const double found = square / both;
    measures[kVariance] = found < most ? found : most;
  }
  const double noise = measures[kVariance] * both;
  const double least = not_below_zero(square - (1.0 + kDoubt) * noise) * spread * spread;
  const double largest = not_below_zero(square - (1.0 - kDoubt) * noise) * spread * spread;
  double stands = kStands * rate * rate;
  if (!(std::isfinite(stands) && stands < largest)) stands = largest;
  measures[kRate] = std::sqrt(stands < least ? least : stands);
}

// An output was kept: its own noise is P_0.
AK_HD void keep_noise(const float* w, double* measures) {
  const double share = measures[kShare];
  const double own = (1.0 - share) * (1.0 - share) * w[kNoiseWeight];
  const double now = own + share * share * noise_of_fill(w, measures);
  for (int k = kOutputs - 1; k > 0; --k) measures[kNoise + k] = measures[kNoise + k - 1];
  measures[kNoise] = now;
}

// For a refresh with these weights; 0 but for a line through the last two outputs.
AK_HD double share_of(const float* w, const double* measures) {
  const double spread = w[kSpreadWeight], signal = measures[kRate] / spread;
  const double noise = measures[kVariance] * w[kNoiseWeight];
  const double both = signal * signal + measures[kVariance] * noise_of_fill(w, measures) + noise;
  const double value = std::floor(noise / both * kShares + 0.5) / kShares;
  const bool usable = noise > 0.0 && std::isfinite(spread) && w[0] != 0.0f && w[1] != 0.0f;
  return usable && value > 0.0 ? value : 0.0;
}

// The predicted error of a run.
AK_HD double predict_run(const float* entry, const double* measures) {
  const double clean = measures[kRate] * entry[0];
  if (!(measures[kVariance] > 0.0)) return clean;
  double noise = 0.0;
  for (int k = 0; k < kOutputs; ++k) {
    const double a = entry[1 + k];
    noise += a * a * measures[kNoise + k];
  }
  noise = not_below_zero(noise - entry[1 + kOutputs]);
  return std::sqrt(clean * clean + kNoiseCounts * measures[kVariance] * noise);
}

}  // namespace ak
