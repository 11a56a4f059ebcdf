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
  float share;
};

// What a step does with them: fills, or takes the network's, measures the fill's defect, and leaves
// a share of it out of what it keeps.
enum Kind { kSkipped, kCalled, kMeasured, kShared };

struct FillLatents {
  const float* x;
  float* x_next;
};

// The elements from i on that fit V; their terms of the defect are added to the sum.
template <Kind kKind, bool kRepair, bool kGuided, typename V, typename T>
AK_HD void fused_fill_at(const Near& row, const Weights& w, int64_t i, const Network<T>& net,
                         const FillLatents& latents, const FillStreams& out, V* sum) {
  const V x = load_as<V>(latents.x + i);
  const V e0 = load_as<V>(out.e0 + i), e1 = load_as<V>(out.e1 + i);
  V h;
  if (kKind != kSkipped) {
    V m = load_as<V>(net.m + i);
    if (kGuided) m = guide(m, load_as<V>(net.conditional + i), net.guidance_scale);
    h = keep(row, x, m);
    const V e = kept_output(row, x, m);
    if (kRepair) h = h + repair(row, w, e, e0, e1);
    if (kKind == kCalled) {
      store(e, out.e + i);
    } else {
      const V filled = fill(w, e0, e1), d = e - filled;
      *sum += d * d;
      store(kKind == kShared ? leave_output(e, filled, out.share) : e, out.e + i);
    }
  } else {
    h = keep_filled(row, x, fill(w, e0, e1));
  }
  const V next = update(row, x, h);
  store(next, latents.x_next + i);
  store(row.input_scale * next, net.input + i);
  if (kGuided) store(row.input_scale * next, net.conditional_input + i);
}

template <Kind kKind, bool kRepair, bool kGuided, typename T>
AK_HD void fused_fill(const Row& from, const Weights& weights, int64_t n, const Network<T>& net,
                      const FillLatents& latents, const FillStreams& out, Vec* lanes) {
  const Near row(from);
  const Weights w = weights;
  const int64_t whole = n / kLanes * kLanes;
  Vec sum = *lanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    fused_fill_at<kKind, kRepair, kGuided>(row, w, i, net, latents, out, &sum);
  float last[kLanes] = {};
  for (int64_t i = whole; i < n; ++i)
    fused_fill_at<kKind, kRepair, kGuided>(row, w, i, net, latents, out, &last[i - whole]);
  *lanes = sum + load_as<Vec>(last);
}

template <Kind kKind, bool kRepair, typename T>
AK_HD void fused_fill_typed(const Args& a, const Sample& s, int64_t begin, int64_t n, Vec* lanes) {
  const int64_t at = s.b * a.N + begin, half = a.guided ? a.B * a.N : 0;
  const T* output = static_cast<const T*>(a.model_output) + at;
  T* input = static_cast<T*>(a.model_input) + at;
  const Network<T> net = {output, output + half, input, input + half, a.guidance_scale[s.b]};
  const FillStreams out = {s.outputs[0] + begin, s.outputs[1] + begin, s.output + begin, s.share};
  const FillLatents latents = {s.x + begin, s.x_next + begin};
  if (a.guided)
    fused_fill<kKind, kRepair, true>(s.row, s.weights, n, net, latents, out, lanes);
  else
    fused_fill<kKind, kRepair, false>(s.row, s.weights, n, net, latents, out, lanes);
}

template <bool kRepair, typename T>
AK_HD void fused_refresh(const Args& a, const Sample& s, int64_t begin, int64_t n, Vec* lanes) {
  if (!needs_defect(a.rule.criterion))
    fused_fill_typed<kCalled, kRepair, T>(a, s, begin, n, lanes);
  else if (s.share == 0.0f)
    fused_fill_typed<kMeasured, kRepair, T>(a, s, begin, n, lanes);
  else
    fused_fill_typed<kShared, kRepair, T>(a, s, begin, n, lanes);
}

template <typename T>
AK_HD void fused_fill_tile(const Args& a, const Sample& s, int64_t begin, int64_t n,
                           Partial* sums) {
  const float* r = s.weights.r;
  Vec lanes = {};
  if (!s.fresh)
    fused_fill_typed<kSkipped, false, T>(a, s, begin, n, &lanes);
  else if (r[0] != 0.0f || r[1] != 0.0f || r[2] != 0.0f)
    fused_refresh<true, T>(a, s, begin, n, &lanes);
  else
    fused_refresh<false, T>(a, s, begin, n, &lanes);
  float total[kLanes];
  store(lanes, total);
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
