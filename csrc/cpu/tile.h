// One chunk of one sample's step on the CPU: the part that is vector code.
//
// A chunk runs in tiles that stay in the L1 cache, one short loop per line of core/step.h.
#pragma once

#include <algorithm>

#include "core/noise.h"
#include "cpu/fused_fill.h"
#include "cpu/tile_fill.h"
#include "op/convert.h"

namespace ak {

template <typename T>
AK_HD void load_guided(const Args& a, int64_t b, int64_t begin, int64_t n, float* m) {
  const T* row = static_cast<const T*>(a.model_output) + b * a.N + begin;
  load_row(row, n, m);
  if (!a.guided) return;
  float conditional[kTile];
  load_row(row + a.B * a.N, n, conditional);
  const float scale = a.guidance_scale[b];
  for (int64_t i = 0; i < n; ++i) m[i] = guide(m[i], conditional[i], scale);
}

template <typename T>
AK_HD void store_input(const Args& a, int64_t b, int64_t begin, int64_t n, float scale,
                       const float* x_next) {
  float scaled[kTile];
  for (int64_t i = 0; i < n; ++i) scaled[i] = scale * x_next[i];
  T* row = static_cast<T*>(a.model_input) + b * a.N + begin;
  store_row(scaled, n, row);
  if (a.guided) std::copy(row, row + n, row + a.B * a.N);
}

AK_HD void add_noise(const Args& a, const Sample& s, int64_t begin, int64_t n, float* acc) {
  if (s.noise) {
    for (int64_t i = 0; i < n; ++i) acc[i] += s.row.S * s.noise[begin + i];
    return;
  }
  if (!a.seed) {
    std::fill(acc, acc + n, NAN);
    return;
  }
  constexpr int64_t kQuads = 64;
  for (int64_t i = 0; i < n; i += 4 * kQuads) {  // begin is a multiple of 4
    float z[4 * kQuads];
    normal<kQuads>(s.seed, static_cast<uint64_t>((begin + i) / 4), static_cast<uint32_t>(s.step),
                   z);
    const int64_t here = least(4 * kQuads, n - i);
    for (int64_t j = 0; j < here; ++j) acc[i + j] += s.row.S * z[j];
  }
}

// Whether fused.h covers this step; everything else takes the general loops.
AK_HD bool is_common(const Args& a, const Sample& s) {
  return a.K == 1 && !a.outputs && s.row.S == 0.0f && a.rule.stages == 1 && s.step + 1 < a.T &&
         a.input_type == a.output_type;
}

AK_HD void common_tile(const Args& a, const Sample& s, int64_t begin, int64_t n, Partial* sums) {
  Lanes lanes;
  const float* x_1 = s.third ? s.x_1 : s.x;
  const float* x_2 = s.third ? s.x_2 : s.x;
  const Streams streams = {s.x + begin, x_1 + begin, x_2 + begin, s.x_next + begin};
  if (s.third)
    fused_types<kSquaresAndThird>(a, s.row, s.b, begin, n, streams, &lanes);
  else if (s.first && sums_squares(a.rule.criterion))
    fused_types<kSquares>(a, s.row, s.b, begin, n, streams, &lanes);
  else if (s.first)
    fused_types<kAbsolute>(a, s.row, s.b, begin, n, streams, &lanes);
  else
    fused_types<kNothing>(a, s.row, s.b, begin, n, streams, &lanes);
  float third[kLanes], first[kLanes];
  store(lanes.third, third);
  store(lanes.first, first);
  sums->third += lanes_sum(third);
  sums->first += lanes_sum(first);
}

AK_HD void load_output(const Args& a, const Sample& s, int64_t begin, int64_t n, float* m) {
  switch (a.output_type) {
    case ScalarType::Float:
      return load_guided<float>(a, s.b, begin, n, m);
    case ScalarType::Half:
      return load_guided<Half>(a, s.b, begin, n, m);
    default:
      return load_guided<BFloat16>(a, s.b, begin, n, m);
  }
}

AK_HD void general_tile(const Args& a, const Sample& s, int64_t begin, int64_t n, Partial* sums) {
  float m[kTile], h[kTile], acc[kTile];
  const Row& row = s.row;
  const float* x = s.x + begin;
  if (a.outputs && !s.fresh) {
    load_fill(s, begin, n, m);
    for (int64_t i = 0; i < n; ++i) h[i] = keep_filled(row, x[i], m[i]);
  } else {
    load_output(a, s, begin, n, m);
    for (int64_t i = 0; i < n; ++i) h[i] = keep(row, x[i], m[i]);
    if (a.outputs) keep_output(a, s, begin, n, m, h, sums);
  }
  for (int64_t i = 0; i < n; ++i) acc[i] = update(row, x[i], h[i]);
  for (int64_t k = 1; k < s.lags; ++k) {
    const float* old = s.history[k - 1] + begin;
    const float c = row.C[k];
    for (int64_t i = 0; i < n; ++i) acc[i] += c * old[i];
  }
  if (a.K > 1) std::copy(h, h + n, s.history_next + begin);
  if (row.S != 0.0f) add_noise(a, s, begin, n, acc);

  if (s.third) {
    const float *x0 = s.x_back + begin, *x1 = s.x_1 + begin, *x2 = s.x_2 + begin;
    sums->third += tile_sum(n, [&](int64_t i) {
      const float d = third_difference(acc[i], x0[i], x1[i], x2[i]);
      return d * d;
    });
  }
  if (s.first) {
    const float* x0 = s.x_back + begin;
    const bool squares = sums_squares(a.rule.criterion);
    sums->first += squares ? tile_sum(n,
                                      [&](int64_t i) {
                                        const float d = acc[i] - x0[i];
                                        return d * d;
                                      })
                           : tile_sum(n, [&](int64_t i) { return std::fabs(acc[i] - x0[i]); });
  }
  std::copy(acc, acc + n, s.x_next + begin);
  if (s.step + 1 == a.T) return;
  switch (a.input_type) {
    case ScalarType::Float:
      store_input<float>(a, s.b, begin, n, row.input_scale, acc);
      break;
    case ScalarType::Half:
      store_input<Half>(a, s.b, begin, n, row.input_scale, acc);
      break;
    default:
      store_input<BFloat16>(a, s.b, begin, n, row.input_scale, acc);
  }
}

AK_CLONES inline void chunk(const Args& a, const Sample& s, int64_t begin, int64_t end,
                            Partial* sums) {
  Partial partial;
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t n = std::min(kTile, end - at);
    if (is_common(a, s))
      common_tile(a, s, at, n, &partial);
    else if (is_common_fill(a, s) && a.input_type == ScalarType::Float)
      fused_fill_tile<float>(a, s, at, n, &partial);
    else if (is_common_fill(a, s))
      fused_fill_tile<BFloat16>(a, s, at, n, &partial);
    else
      general_tile(a, s, at, n, &partial);
  }
  *sums = partial;
}

}  // namespace ak
