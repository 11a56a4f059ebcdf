// The signatures of the ops `step` and `advance`, once for every device: the schemas of
// adaptive_kernels/ops/schema.py. A device gives two functions of the collected arguments.
#pragma once

#include "op/check.h"

namespace ak {

using StepFunction = void (*)(const Tensors&, const Rule&, const Condition&, bool fresh);
using AdvanceFunction = void (*)(const Tensors&, const Rule&, const Condition&);

#define AK_PARAMETER(name, type, written, optional, ...) Given<optional> name,
#define AK_ARGUMENT(name, ...) name,

template <StepFunction run>
void step(AK_FIELDS(AK_PARAMETER) int64_t criterion, int64_t max_skip, int64_t warmup,
          int64_t stages, bool batch_wide, bool fresh, Condition condition) {
  run({AK_FIELDS(AK_ARGUMENT)}, {criterion, max_skip, warmup, stages, batch_wide}, condition,
      fresh);
}

template <AdvanceFunction run>
void advance(AK_FIELDS(AK_PARAMETER) int64_t criterion, int64_t max_skip, int64_t warmup,
             int64_t stages, bool batch_wide, Condition condition) {
  run({AK_FIELDS(AK_ARGUMENT)}, {criterion, max_skip, warmup, stages, batch_wide}, condition);
}

#undef AK_PARAMETER
#undef AK_ARGUMENT

}  // namespace ak
