// The signatures of the ops `step` and `advance`, once for every device: the schemas of
// adaptive_kernels/ops/schema.py. A device gives two functions of the collected arguments.
#pragma once

#include "op/check.h"

namespace ak {

using StepFunction = void (*)(const Tensors&, const Rule&, const Options&, bool fresh);
using AdvanceFunction = void (*)(const Tensors&, const Rule&, const Options&);

template <StepFunction run>
void step(Tensor latents, Tensor history, Tensor model_input, Tensor timestep, Tensor progress,
          Tensor norms, Tensor refreshed, Tensor score, std::optional<Tensor> outputs,
          std::optional<Tensor> workspace, Tensor model_output, Tensor guidance_scale,
          Tensor threshold, Tensor rows, std::optional<Tensor> weights,
          std::optional<Tensor> run_cost, Tensor seed, std::optional<Tensor> noise,
          int64_t criterion, int64_t max_skip, int64_t warmup, int64_t stages, bool batch_wide,
          bool fresh, std::optional<int64_t> condition) {
  run({latents, history, model_input, timestep, progress, norms, refreshed, score, outputs,
       workspace, model_output, guidance_scale, threshold, rows, weights, run_cost, seed, noise},
      {criterion, max_skip, warmup, stages}, {batch_wide, condition}, fresh);
}

template <AdvanceFunction run>
void advance(Tensor latents, Tensor history, Tensor model_input, Tensor timestep, Tensor progress,
             Tensor norms, Tensor refreshed, Tensor score, std::optional<Tensor> outputs,
             std::optional<Tensor> workspace, Tensor model_output, Tensor guidance_scale,
             Tensor threshold, Tensor rows, std::optional<Tensor> weights,
             std::optional<Tensor> run_cost, Tensor seed, std::optional<Tensor> noise,
             int64_t criterion, int64_t max_skip, int64_t warmup, int64_t stages, bool batch_wide,
             std::optional<int64_t> condition) {
  run({latents, history, model_input, timestep, progress, norms, refreshed, score, outputs,
       workspace, model_output, guidance_scale, threshold, rows, weights, run_cost, seed, noise},
      {criterion, max_skip, warmup, stages}, {batch_wide, condition});
}

}  // namespace ak
