// The arguments of `step` and `advance` as checked plain pointers, shared by every device.
#pragma once

#include "decide.h"
#include "tensor.h"

namespace ak {

constexpr int64_t kMaxHistory = 8;

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
  std::optional<Tensor> outputs;  // [3, B, N] float32, ring: refresh number r is in slot r mod 3
  Tensor model_output;    // [B or 2B, N] float32, float16 or bfloat16; 2B: unconditional first
  Tensor guidance_scale;  // [B] float32
  Tensor threshold;       // [B] float32
  Tensor rows;            // [T, 10 + K] float32
  std::optional<Tensor> weights;   // [T, G, G, 7] float32, with `outputs`
  std::optional<Tensor> run_cost;  // [T, G, Q] float32, of the rules that need it
  Tensor seed;                     // [B] int64
  std::optional<Tensor> noise;     // [T, B, N] float32
};

struct Args {
  int64_t R, B, N, K, T, width, G, Q;
  bool guided, batch_wide;
  Rule rule;
  float *latents, *history, *outputs;
  void *model_input, *timestep;
  int32_t *index, *run, *nfe, *newest, *before;
  double* norms;
  bool* refreshed;
  float* score;
  const void* model_output;
  const float *guidance_scale, *threshold, *rows, *weights, *run_cost, *noise;
  const int64_t* seed;
  ScalarType input_type, output_type, timestep_type;
};

inline bool is_network_type(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16;
}

AK_HD void set_timestep(const Args& a, int64_t b, float value) {
  for (int64_t row = b; row < (a.guided ? 2 * a.B : a.B); row += a.B) {
    if (a.timestep_type == ScalarType::Long)
      static_cast<int64_t*>(a.timestep)[row] = static_cast<int64_t>(value);
    else
      static_cast<float*>(a.timestep)[row] = value;
  }
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

inline Args check(const Tensors& t, const Rule& rule, bool batch_wide) {
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
  a.batch_wide = batch_wide;
  a.R = t.latents.size(0);
  a.B = t.latents.size(1);
  a.N = t.latents.size(2);
  a.T = t.rows.size(0);
  a.width = t.rows.size(1);
  a.K = a.width - kRowScalars;
  const int64_t networks_rows = t.model_output.size(0);
  a.guided = a.B > 0 && networks_rows == 2 * a.B;
  STD_TORCH_CHECK(a.R >= 3 * rule.stages + 1, "latents must hold at least ", 3 * rule.stages + 1,
                  " steps, got ", a.R);
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
  a.index = data<int32_t>(t.progress, "progress", ScalarType::Int, {5, a.B});
  a.run = a.index + a.B;
  a.nfe = a.run + a.B;
  a.newest = a.nfe + a.B;
  a.before = a.newest + a.B;
  a.norms = data<double>(t.norms, "norms", ScalarType::Double, {a.B, 2});
  a.refreshed = data<bool>(t.refreshed, "refreshed", ScalarType::Bool, {a.T, a.B});
  a.score = data<float>(t.score, "score", kFloat, {a.T, a.B});
  a.guidance_scale = data<float>(t.guidance_scale, "guidance_scale", kFloat, {a.B});
  a.threshold = data<float>(t.threshold, "threshold", kFloat, {a.B});
  a.rows = data<float>(t.rows, "rows", kFloat, {a.T, a.width});
  a.seed = data<int64_t>(t.seed, "seed", ScalarType::Long, {a.B});
  check_fill(t, &a);
  if (t.noise) a.noise = data<float>(*t.noise, "noise", kFloat, {a.T, a.B, a.N});

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
  if (t.weights) extents.push_back(extent(*t.weights, "weights"));
  if (t.run_cost) extents.push_back(extent(*t.run_cost, "run_cost"));
  if (t.noise) extents.push_back(extent(*t.noise, "noise"));
  expect_apart(extents);
  return a;
}

}  // namespace ak
