// The arguments of `step` and `advance` as plain pointers, checked (check.h); every device's
// loops and kernels read these.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "core/decide.h"

namespace ak {

using torch::headeronly::ScalarType;

constexpr int64_t kMaxHistory = 8;

// A GPU sums over pieces of this many elements, in an order that only N decides. The workspace of
// a sample is [1 + pieces, 16] float64: a head (cuda/grid/memory.h), then up to 16 sums of each
// piece.
constexpr int64_t kPiece = 2048;
constexpr int64_t kSums = 16;

struct Args {
  int64_t R, B, N, K, T, width, G, Q;
  int64_t pieces, workspace_stride;
  bool guided, batch_wide;
  bool aligned;  // every row stands on a 16-byte boundary and holds a multiple of 8 elements
  bool conditional;
  uint64_t condition;
  Rule rule;
  float *latents, *history, *outputs;
  void *model_input, *timestep;
  int32_t* progress;
  double *norms, *workspace;
  bool* refreshed;
  float* score;
  const void* model_output;
  const float *guidance_scale, *threshold, *rows, *weights, *run_cost, *noise;
  const int64_t* seed;
  ScalarType input_type, output_type, timestep_type;
};

AK_HD void set_timestep(const Args& a, int64_t b, float value) {
  for (int64_t row = b; row < (a.guided ? 2 * a.B : a.B); row += a.B) {
    if (a.timestep_type == ScalarType::Long)
      static_cast<int64_t*>(a.timestep)[row] = static_cast<int64_t>(value);
    else
      static_cast<float*>(a.timestep)[row] = value;
  }
}

}  // namespace ak
