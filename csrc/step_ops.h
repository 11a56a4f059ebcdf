// The signatures of the ops `step` and `advance`, once for every device: the schemas of
// adaptive_kernels/ops.py. A device gives two functions of the collected arguments.
#pragma once

#include "step_args.h"

namespace ak {

using StepFunction = void (*)(const Tensors&, const Rule&, bool batch_wide, bool fresh);
using AdvanceFunction = void (*)(const Tensors&, const Rule&, bool batch_wide);

template <StepFunction run>
void step(Tensor latents, Tensor history, Tensor model_input, Tensor timestep, Tensor progress,
          Tensor norms, Tensor refreshed, Tensor score, std::optional<Tensor> outputs,
          Tensor model_output, Tensor guidance_scale, Tensor threshold, Tensor rows,
          std::optional<Tensor> weights, std::optional<Tensor> run_cost, Tensor seed,
          std::optional<Tensor> noise, int64_t criterion, int64_t max_skip, int64_t warmup,
          int64_t stages, bool batch_wide, bool fresh) {
  run({latents, history, model_input, timestep, progress, norms, refreshed, score, outputs,
       model_output, guidance_scale, threshold, rows, weights, run_cost, seed, noise},
      {criterion, max_skip, warmup, stages}, batch_wide, fresh);
}

template <AdvanceFunction run>
void advance(Tensor latents, Tensor history, Tensor model_input, Tensor timestep, Tensor progress,
             Tensor norms, Tensor refreshed, Tensor score, std::optional<Tensor> outputs,
             Tensor model_output, Tensor guidance_scale, Tensor threshold, Tensor rows,
             std::optional<Tensor> weights, std::optional<Tensor> run_cost, Tensor seed,
             std::optional<Tensor> noise, int64_t criterion, int64_t max_skip, int64_t warmup,
             int64_t stages, bool batch_wide) {
  run({latents, history, model_input, timestep, progress, norms, refreshed, score, outputs,
       model_output, guidance_scale, threshold, rows, weights, run_cost, seed, noise},
      {criterion, max_skip, warmup, stages}, batch_wide);
}

}  // namespace ak
