// The fill's part of a tile: what stands for a skipped call, and what a call leaves behind.
#pragma once

#include <algorithm>

#include "sample.h"

namespace ak {

// f_0 E_0 + f_1 E_1 + f_2 E_2.
AK_HD void load_fill(const Sample& s, int64_t begin, int64_t n, float* fill) {
  for (int64_t i = 0; i < n; ++i) fill[i] = 0.0f;
  for (int64_t k = 0; k < s.kept; ++k) {
    const float f = s.weights.f[k];
    const float* old = s.outputs[k] + begin;
    if (f == 0.0f) continue;
    for (int64_t i = 0; i < n; ++i) fill[i] += f * old[i];
  }
}

// The fill's part of a refresh: the defect, the repair, and what is kept of the model output.
AK_HD void keep_output(const Args& a, const Sample& s, int64_t begin, int64_t n, const float* m,
                       float* h, Partial* sums) {
  float e[kTile], fill[kTile];
  const Row& row = s.row;
  const float* x = s.x + begin;
  for (int64_t i = 0; i < n; ++i) e[i] = kept_output(row, x[i], m[i]);
  if (s.boundary && needs_defect(a.rule.criterion)) {
    load_fill(s, begin, n, fill);
    sums->defect += tile_sum(n, [&](int64_t i) {
      const float d = e[i] - fill[i];
      return d * d;
    });
  }
  const float* r = s.weights.r;
  if (r[0] != 0.0f || r[1] != 0.0f || r[2] != 0.0f) {
    for (int64_t i = 0; i < n; ++i) fill[i] = r[0] * e[i];
    for (int64_t k = 1; k < kOutputs && k <= s.kept; ++k) {
      const float* old = s.outputs[k - 1] + begin;
      for (int64_t i = 0; i < n; ++i) fill[i] += r[k] * old[i];
    }
    for (int64_t i = 0; i < n; ++i) h[i] += row.qs * fill[i];
  }
  std::copy(e, e + n, s.output + begin);
}

}  // namespace ak
