// Where one sample of a step reads and writes on the CPU, and how its sums are kept: in kLanes
// float lanes within a tile and in double beyond it, in an order that no vector width and no thread
// count changes.
#pragma once

#include <algorithm>

#include "op/progress.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AK_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define AK_CLONES
#endif

namespace ak {

constexpr int64_t kLanes = 16;
constexpr int64_t kTile = 1024;
constexpr int64_t kChunk = 16 * kTile;

struct Sample {
  Place at;
  int64_t b, step;
  Row row;
  const float* x;                   // latents at `step`
  const float *x_back, *x_1, *x_2;  // one, two and three whole steps before the new latents
  float* x_next;
  int64_t lags;                       // terms of the history that exist, h_i included
  const float* history[kMaxHistory];  // h_{i-1}, h_{i-2}, ...
  float* history_next;
  bool third, first, defect;       // what the criterion needs of this step
  bool fresh;                      // on a new model output
  Weights weights;                 // from here on: with a fill other than reuse
  int64_t kept;                    // outputs that exist
  const float* outputs[kOutputs];  // E_0, E_1, E_2
  float* output;                   // where a refresh leaves its own; may be E_2
  float share;                     // of the defect, that it leaves out of it
  uint64_t seed;
  const float* noise;
};

struct Partial {
  double third = 0, first = 0, defect = 0;
};

AK_HD double lanes_sum(const float* lanes) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

template <typename Term>
AK_HD double tile_sum(int64_t n, Term term) {
  float lanes[kLanes] = {};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += term(i + j);
  for (int64_t i = whole; i < n; ++i) lanes[i - whole] += term(i);
  return lanes_sum(lanes);
}

inline Sample locate(const Args& a, int64_t b) {
  Sample s = {};
  s.at = place_of(a, b);
  s.b = b;
  s.step = s.at.index;
  s.row = row_at(a.rows, a.width, s.step);
  const auto ring = [&](int64_t step) { return a.latents + (slot(step, a.R) * a.B + b) * a.N; };
  const int64_t next = s.step + 1, stages = a.rule.stages;
  s.x = ring(s.step);
  s.x_next = ring(next);
  s.first = wants_first(a, s.at);
  s.third = wants_third(a, s.at);
  s.defect = wants_defect(a, s.at);
  if (s.first) s.x_back = ring(next - stages);
  if (s.third) {
    s.x_1 = ring(next - 2 * stages);
    s.x_2 = ring(next - 3 * stages);
  }
  const int64_t depth = a.K - 1;
  // Before enough steps were taken the coefficients are zero, but 0 x (whatever is there) may be
  // NaN.
  s.lags = std::min(a.K, s.step + 1);
  for (int64_t k = 1; k < s.lags; ++k)
    s.history[k - 1] = a.history + (slot(s.step - k, depth) * a.B + b) * a.N;
  if (depth > 0) s.history_next = a.history + (slot(s.step, depth) * a.B + b) * a.N;
  s.fresh = is_fresh(s.at);
  if (a.outputs) {
    const auto kept = [&](int64_t r) { return a.outputs + (r % kOutputs * a.B + b) * a.N; };
    s.weights = weights_at(a, s.at);
    s.kept = std::min<int64_t>(s.at.nfe, kOutputs);
    for (int64_t k = 0; k < kOutputs; ++k)
      s.outputs[k] = kept(std::max<int64_t>(s.at.nfe - 1 - k, 0));  // read only where it exists
    s.output = kept(s.at.nfe);
    s.share = share_at(a, s.at);
  }
  s.seed = a.seed ? static_cast<uint64_t>(a.seed[b]) : 0;
  if (a.noise) s.noise = a.noise + (s.step * a.B + b) * a.N;
  return s;
}

}  // namespace ak
