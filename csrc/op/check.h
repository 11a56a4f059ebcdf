// The arguments of `step` and `advance` from tensors, each checked, shared by every device.
#pragma once

#include "op/args.h"
#include "op/tensor.h"

namespace ak {

struct Tensors {
  Tensor latents;      // [R, B, N] float32, ring: slot of step i is i mod R
  Tensor history;      // [K - 1, B, N] float32, ring of h
  Tensor model_input;  // [B or 2B, N] float32, float16 or bfloat16
  Tensor timestep;     // [B or 2B] float32 or int64
  Tensor progress;     // [5, B] int32: index, run, nfe, step of the last refresh, one before
  Tensor norms;        // [B, 2] float64: first-difference sums of the last two whole steps;
                       // under `defect`: the defect of the last refresh times its spread
  Tensor refreshed;    // [T, B] bool
  Tensor score;        // [T, B] float32
  std::optional<Tensor> outputs;    // [3, B, N] float32, ring: refresh number r is in slot r mod 3
  std::optional<Tensor> workspace;  // [B, >= 1 + pieces, 16] float64, of a GPU
  Tensor model_output;    // [B or 2B, N] float32, float16 or bfloat16; 2B: unconditional first
  Tensor guidance_scale;  // [B] float32
  Tensor threshold;       // [B] float32
  Tensor rows;            // [T, 10 + K] float32
  std::optional<Tensor> weights;   // [T, G, G, 7] float32, with `outputs`
  std::optional<Tensor> run_cost;  // [T, G, Q] float32, of the rules that need it
  Tensor seed;                     // [B] int64
  std::optional<Tensor> noise;     // [T, B, N] float32
};

inline bool is_network_type(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16;
}

inline void check_fill(const Tensors& t, Args* a) {
  const bool decides = a->rule.criterion == kDefect || a->rule.criterion == kPlan;
  STD_TORCH_CHECK(t.outputs.has_value() == t.weights.has_value(),
                  "outputs and weights must be given together");
  STD_TORCH_CHECK(!decides || (t.outputs && t.run_cost),
                  "outputs, weights and run_cost must be given for this criterion");
  if (!t.outputs) return;
  a->outputs = data<float>(*t.outputs, "outputs", ScalarType::Float, {kOutputs, a->B, a->N});
  STD_TORCH_CHECK(t.weights->dim() == 4 && t.weights->size(1) > 0,
                  "weights must have shape [T, G, G, 7] with G >= 1, got ", shape_of(*t.weights));
  a->G = t.weights->size(1);
  a->weights = data<float>(*t.weights, "weights", ScalarType::Float, {a->T, a->G, a->G, kWeights});
  if (!t.run_cost) return;
  STD_TORCH_CHECK(t.run_cost->dim() == 3 && t.run_cost->size(2) > 0,
                  "run_cost must have shape [T, G, Q] with Q >= 1, got ", shape_of(*t.run_cost));
  a->Q = t.run_cost->size(2);
  a->run_cost = data<float>(*t.run_cost, "run_cost", ScalarType::Float, {a->T, a->G, a->Q});
}

struct Options {
  bool batch_wide;
  std::optional<int64_t> condition;
};

inline void check_workspace(const Tensors& t, Args* a) {
  a->pieces = a->N > kPiece ? (a->N + kPiece - 1) / kPiece : 1;
  if (!t.workspace) return;
  STD_TORCH_CHECK(t.workspace->dim() == 3 && t.workspace->size(1) > a->pieces,
                  "workspace must have shape [B, P, 16] with P > ", a->pieces, ", got ",
                  shape_of(*t.workspace));
  // One sample's place does not depend on how much is spare behind the last.
  a->workspace = data<double>(*t.workspace, "workspace", ScalarType::Double,
                              {a->B, t.workspace->size(1), kSums});
  a->workspace_stride = t.workspace->size(1) * kSums;
}

// Whether a GPU may move 16 bytes at a time.
inline void check_alignment(Args* a) {
  a->aligned = a->N % 8 == 0;
  for (const void* at : {static_cast<const void*>(a->latents), static_cast<const void*>(a->history),
                         static_cast<const void*>(a->outputs), static_cast<const void*>(a->noise),
                         static_cast<const void*>(a->model_input), a->model_output})
    a->aligned = a->aligned && reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

inline Args check(const Tensors& t, const Rule& rule, const Options& options) {
  constexpr ScalarType kFloat = ScalarType::Float;
  STD_TORCH_CHECK(t.latents.dim() == 3, "latents must have 3 dimensions [R, B, N], got ",
                  t.latents.dim());
  STD_TORCH_CHECK(t.rows.dim() == 2 && t.rows.size(0) > 0 && t.rows.size(1) > kRowScalars &&
                      t.rows.size(1) <= kRowScalars + kMaxHistory,
                  "rows must have shape [T, 10 + K] with T >= 1 and 1 <= K <= 8, got ",
                  shape_of(t.rows));
  STD_TORCH_CHECK(t.model_output.dim() == 2, "model_output must have 2 dimensions, got ",
                  t.model_output.dim());
  STD_TORCH_CHECK(rule.criterion >= 0 && rule.criterion < kCriteria, "criterion must be 0 to ",
                  kCriteria - 1, ", got ", rule.criterion);
  STD_TORCH_CHECK(rule.max_skip >= 0, "max_skip must be at least 0, got ", rule.max_skip);
  STD_TORCH_CHECK(rule.stages >= 1, "stages must be at least 1, got ", rule.stages);
  const int64_t least = least_warmup(rule.criterion);
  STD_TORCH_CHECK(rule.warmup >= least, "warmup must be at least ", least,
                  " for this criterion, got ", rule.warmup);

  Args a = {};
  a.rule = rule;
  a.batch_wide = options.batch_wide && t.latents.size(1) > 1;
  a.conditional = options.condition.has_value();
  a.condition = static_cast<uint64_t>(options.condition.value_or(0));
  a.R = t.latents.size(0);
  a.B = t.latents.size(1);
  a.N = t.latents.size(2);
  a.T = t.rows.size(0);
  a.width = t.rows.size(1);
  a.K = a.width - kRowScalars;
  const int64_t networks_rows = t.model_output.size(0);
  a.guided = a.B > 0 && networks_rows == 2 * a.B;
  STD_TORCH_CHECK(rule.stages <= (a.R - 1) / 3, "latents must hold at least ",
                  3 * ak::least(rule.stages, 1 << 20) + 1, " steps, got ", a.R);
  STD_TORCH_CHECK(a.B > 0 || !a.conditional, "condition needs at least one sample");
  STD_TORCH_CHECK(networks_rows == a.B || a.guided, "model_output must have ", a.B, " or ", 2 * a.B,
                  " rows, got ", networks_rows);

  a.latents = data<float>(t.latents, "latents", kFloat, {a.R, a.B, a.N});
  a.history = data<float>(t.history, "history", kFloat, {a.K - 1, a.B, a.N});
  a.input_type = t.model_input.scalar_type();
  a.output_type = t.model_output.scalar_type();
  a.timestep_type = t.timestep.scalar_type();
  STD_TORCH_CHECK(is_network_type(a.input_type),
                  "model_input must be float32, float16 or bfloat16, got ",
                  type_name(a.input_type));
  STD_TORCH_CHECK(is_network_type(a.output_type),
                  "model_output must be float32, float16 or bfloat16, got ",
                  type_name(a.output_type));
  STD_TORCH_CHECK(a.timestep_type == kFloat || a.timestep_type == ScalarType::Long,
                  "timestep must be float32 or int64, got ", type_name(a.timestep_type));
  expect_shape(t.model_input, "model_input", {networks_rows, a.N});
  expect_shape(t.model_output, "model_output", {networks_rows, a.N});
  expect_shape(t.timestep, "timestep", {networks_rows});
  a.model_input = t.model_input.data_ptr();
  a.model_output = t.model_output.data_ptr();
  a.timestep = t.timestep.data_ptr();
  a.progress = data<int32_t>(t.progress, "progress", ScalarType::Int, {5, a.B});
  a.norms = data<double>(t.norms, "norms", ScalarType::Double, {a.B, 2});
  a.refreshed = data<bool>(t.refreshed, "refreshed", ScalarType::Bool, {a.T, a.B});
  a.score = data<float>(t.score, "score", kFloat, {a.T, a.B});
  a.guidance_scale = data<float>(t.guidance_scale, "guidance_scale", kFloat, {a.B});
  a.threshold = data<float>(t.threshold, "threshold", kFloat, {a.B});
  a.rows = data<float>(t.rows, "rows", kFloat, {a.T, a.width});
  a.seed = data<int64_t>(t.seed, "seed", ScalarType::Long, {a.B});
  check_fill(t, &a);
  check_workspace(t, &a);
  if (t.noise) a.noise = data<float>(*t.noise, "noise", kFloat, {a.T, a.B, a.N});
  check_alignment(&a);

  std::vector<Extent> extents = {extent(t.latents, "latents", true),
                                 extent(t.history, "history", true),
                                 extent(t.model_input, "model_input", true),
                                 extent(t.timestep, "timestep", true),
                                 extent(t.progress, "progress", true),
                                 extent(t.norms, "norms", true),
                                 extent(t.refreshed, "refreshed", true),
                                 extent(t.score, "score", true),
                                 extent(t.model_output, "model_output"),
                                 extent(t.guidance_scale, "guidance_scale"),
                                 extent(t.threshold, "threshold"),
                                 extent(t.rows, "rows"),
                                 extent(t.seed, "seed")};
  if (t.outputs) extents.push_back(extent(*t.outputs, "outputs", true));
  if (t.workspace) extents.push_back(extent(*t.workspace, "workspace", true));
  if (t.weights) extents.push_back(extent(*t.weights, "weights"));
  if (t.run_cost) extents.push_back(extent(*t.run_cost, "run_cost"));
  if (t.noise) extents.push_back(extent(*t.noise, "noise"));
  expect_apart(extents);
  return a;
}

}  // namespace ak
