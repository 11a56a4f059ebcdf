// The arguments of `step` and `advance` as plain pointers, checked (check.h); every device's
// loops and kernels read these.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "core/decide.h"
#include "op/fields.h"

namespace ak {

using torch::headeronly::ScalarType;

struct Args {
  int64_t R, B, N, K, T, width, G, Q;
  int64_t pieces, workspace_stride;
  // 2^32 / R, rounded up: step / R is the upper half of step * ring_inverse.
  uint32_t ring_inverse;
  bool guided;
  // Every row stands on a 16-byte boundary and holds a multiple of 8 elements, below 2^31, and
  // ring_inverse divides every step of the sampling right.
  bool aligned;
  bool conditional;
  uint64_t condition;
  Rule rule;
#define AK_FIELD(name, type, written, ...) Pointer<type, written> name;
  AK_FIELDS(AK_FIELD)
#undef AK_FIELD
  ScalarType input_type, output_type, timestep_type;
};

// Whether a step can add noise.
inline bool may_add_noise(const Args& a) { return a.seed || a.noise; }

AK_HD void set_timestep(const Args& a, int64_t b, float value) {
  for (int64_t row = b; row < (a.guided ? 2 * a.B : a.B); row += a.B) {
    if (a.timestep_type == ScalarType::Long)
      static_cast<int64_t*>(a.timestep)[row] = static_cast<int64_t>(value);
    else
      static_cast<float*>(a.timestep)[row] = value;
  }
}

}  // namespace ak
