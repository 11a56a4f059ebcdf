// The common step under a linear fill in one loop: no older history, no noise, one network call per
// whole step, two outputs to extrapolate. Same operations in the same order as tile.h and
// tile_fill.h, so both give the same bits.
#pragma once

#include "cpu/fused.h"

namespace ak {

// What a step reads and leaves of the outputs.
struct FillStreams {
  const float *e0, *e1;
  float* e;
};

template <bool kFresh, bool kMeasure, bool kRepair, bool kGuided, typename T>
AK_HD void fused_fill(const Row& row, const Weights& w, int64_t n, const Network<T>& net,
                      const float* x_from, float* x_to, const FillStreams& out, Vec* lanes) {
  const float p = row.p, q = row.q, A = row.A, C = row.C[0], c = row.input_scale;
  const float u = row.u, v = row.w, ps = row.ps, qs = row.qs;
  const float f0 = w.f[0], f1 = w.f[1], r0 = w.r[0], r1 = w.r[1], r2 = w.r[2];
  const int64_t whole = n / kLanes * kLanes;
  Vec sum = *lanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec x = load_vec(x_from + i);
    const Vec e0 = load_vec(out.e0 + i), e1 = load_vec(out.e1 + i);
    Vec h;
    if (kFresh) {
      Vec m = load_vec(net.m + i);
      if (kGuided) m = m + net.guidance_scale * (load_vec(net.conditional + i) - m);
      h = p * x + q * m;
      const Vec e = u * x + v * m;
      if (kMeasure) {
        const Vec d = e - (f0 * e0 + f1 * e1);
        sum += d * d;
      }
      if (kRepair) h = h + qs * (r0 * e + r1 * e0 + r2 * e1);
      store_vec(e, out.e + i);
    } else {
      h = ps * x + qs * (f0 * e0 + f1 * e1);
    }
    const Vec next = A * x + C * h;
    store_vec(next, x_to + i);
    store_vec(c * next, net.input + i);
    if (kGuided) store_vec(c * next, net.conditional_input + i);
  }
  float last[kLanes] = {};
  for (int64_t i = whole; i < n; ++i) {
    const float x = x_from[i], e0 = out.e0[i], e1 = out.e1[i];
    float h;
    if (kFresh) {
      float m = load(net.m[i]);
      if (kGuided) m = guide(m, load(net.conditional[i]), net.guidance_scale);
      h = keep(row, x, m);
      const float e = kept_output(row, x, m);
      if (kMeasure) {
        const float d = e - (f0 * e0 + f1 * e1);
        last[i - whole] = d * d;
      }
      if (kRepair) h = h + qs * (r0 * e + r1 * e0 + r2 * e1);
      out.e[i] = e;
    } else {
      h = ps * x + qs * (f0 * e0 + f1 * e1);
    }
    const float next = update(row, x, h);
    x_to[i] = next;
    store(c * next, net.input + i);
    if (kGuided) store(c * next, net.conditional_input + i);
  }
  *lanes = sum + load_vec(last);
}

template <bool kFresh, bool kMeasure, bool kRepair, typename T>
AK_HD void fused_fill_typed(const Args& a, const Sample& s, int64_t begin, int64_t n, Vec* lanes) {
  const int64_t at = s.b * a.N + begin, half = a.guided ? a.B * a.N : 0;
  const T* output = static_cast<const T*>(a.model_output) + at;
  T* input = static_cast<T*>(a.model_input) + at;
  const Network<T> net = {output, output + half, input, input + half, a.guidance_scale[s.b]};
  const FillStreams out = {s.outputs[0] + begin, s.outputs[1] + begin, s.output + begin};
  const float* x = s.x + begin;
  float* x_next = s.x_next + begin;
  if (a.guided)
    fused_fill<kFresh, kMeasure, kRepair, true>(s.row, s.weights, n, net, x, x_next, out, lanes);
  else
    fused_fill<kFresh, kMeasure, kRepair, false>(s.row, s.weights, n, net, x, x_next, out, lanes);
}

template <typename T>
AK_HD void fused_fill_tile(const Args& a, const Sample& s, int64_t begin, int64_t n,
                           Partial* sums) {
  const float* r = s.weights.r;
  const bool repair = r[0] != 0.0f || r[1] != 0.0f || r[2] != 0.0f;
  const bool measure = needs_defect(a.rule.criterion);
  Vec lanes = {};
  if (!s.fresh)
    fused_fill_typed<false, false, false, T>(a, s, begin, n, &lanes);
  else if (measure && repair)
    fused_fill_typed<true, true, true, T>(a, s, begin, n, &lanes);
  else if (measure)
    fused_fill_typed<true, true, false, T>(a, s, begin, n, &lanes);
  else if (repair)
    fused_fill_typed<true, false, true, T>(a, s, begin, n, &lanes);
  else
    fused_fill_typed<true, false, false, T>(a, s, begin, n, &lanes);
  float total[kLanes];
  store_vec(lanes, total);
  sums->defect += lanes_sum(total);
}

// Whether this file covers the step; float16 has fast conversions for rows only (op/convert.h).
AK_HD bool is_common_fill(const Args& a, const Sample& s) {
  return a.outputs && a.K == 1 && s.row.S == 0.0f && a.rule.stages == 1 && s.step + 1 < a.T &&
         a.input_type == a.output_type && a.input_type != ScalarType::Half && s.kept >= 2 &&
         s.weights.f[0] != 0.0f && s.weights.f[1] != 0.0f && s.weights.f[2] == 0.0f && !s.first &&
         !s.third;
}

}  // namespace ak
