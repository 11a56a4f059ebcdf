// The fill's part of a tile: what stands for a skipped call, and what a call leaves behind.
#pragma once

#include <algorithm>

#include "cpu/sample.h"

namespace ak {

// f_0 E_0 + f_1 E_1 + f_2 E_2; a weight of 0 leaves its output out, whatever is there.
AK_HD void load_fill(const Sample& s, int64_t begin, int64_t n, float* to) {
  const Weights w = s.weights;
  const float f0 = w.f[0], f1 = w.f[1], f2 = w.f[2];
  const float *e0 = s.outputs[0] + begin, *e1 = s.outputs[1] + begin;
  if (s.kept >= 2 && f0 != 0.0f && f1 != 0.0f) {
    for (int64_t i = 0; i < n; ++i) to[i] = fill(w, e0[i], e1[i]);
  } else {
    const float* only = f0 != 0.0f ? e0 : e1;
    const float f = s.kept >= 1 && f0 != 0.0f ? f0 : s.kept >= 2 ? f1 : 0.0f;
    for (int64_t i = 0; i < n; ++i) to[i] = f != 0.0f ? f * only[i] : 0.0f;
  }
  if (s.kept < 3 || f2 == 0.0f) return;
  const float* e2 = s.outputs[2] + begin;
  for (int64_t i = 0; i < n; ++i) to[i] += f2 * e2[i];
}

// The fill's part of a refresh: the defect, the repair, and what is kept of the model output.
AK_HD void keep_output(const Args& a, const Sample& s, int64_t begin, int64_t n, const float* m,
                       float* h, Partial* sums) {
  float e[kTile], filled[kTile];
  const Row& row = s.row;
  const float* x = s.x + begin;
  for (int64_t i = 0; i < n; ++i) e[i] = kept_output(row, x[i], m[i]);
  if (s.defect) {
    load_fill(s, begin, n, filled);
    sums->defect += tile_sum(n, [&](int64_t i) {
      const float d = e[i] - filled[i];
      return d * d;
    });
  }
  const Weights w = s.weights;
  const float r0 = w.r[0], r1 = w.r[1], r2 = w.r[2], qs = row.qs;
  if (s.kept >= 2 && (r0 != 0.0f || r1 != 0.0f || r2 != 0.0f)) {
    const float *e0 = s.outputs[0] + begin, *e1 = s.outputs[1] + begin;
    for (int64_t i = 0; i < n; ++i) h[i] += repair(row, w, e[i], e0[i], e1[i]);
  } else if (r0 != 0.0f || r1 != 0.0f) {
    for (int64_t i = 0; i < n; ++i) {
      const float old = s.kept >= 1 ? r1 * s.outputs[0][begin + i] : 0.0f;
      h[i] += qs * (r0 * e[i] + old);
    }
  }
  if (s.share != 0.0f)
    for (int64_t i = 0; i < n; ++i) e[i] = leave_output(e[i], filled[i], s.share);
  std::copy(e, e + n, s.output + begin);
}

}  // namespace ak
