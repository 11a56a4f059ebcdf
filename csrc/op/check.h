// The arguments of `step` and `advance` from tensors, each checked, shared by every device.
// adaptive_kernels/ops/check.py raises the same in the same words.
#pragma once

#include "op/args.h"
#include "op/tensor.h"

namespace ak {

template <bool optional>
using Given = std::conditional_t<optional, std::optional<Tensor>, Tensor>;

struct Tensors {
#define AK_FIELD(name, type, written, optional, ...) Given<optional> name;
  AK_FIELDS(AK_FIELD)
#undef AK_FIELD
};

using Condition = std::optional<int64_t>;  // handle of the conditional node of a CUDA graph

inline const Tensor* given(const Tensor& t) { return &t; }
inline const Tensor* given(const std::optional<Tensor>& t) { return t ? &*t : nullptr; }

// Calls visit(tensor, name, written) for every tensor that is given.
template <typename Visit>
void for_each_tensor(const Tensors& t, Visit visit) {
#define AK_FIELD(name, type, written, ...) \
  if (const Tensor* tensor = given(t.name)) visit(*tensor, #name, written);
  AK_FIELDS(AK_FIELD)
#undef AK_FIELD
}

// None for a tensor that must be given comes as one that is not defined.
inline void check_given(const Tensor& tensor, const char* name, bool) {
  STD_TORCH_CHECK(tensor.defined(), name, " must be a tensor, got None");
}

inline void check_rule(const Tensors& t, const Rule& rule) {
  STD_TORCH_CHECK(rule.criterion >= 0 && rule.criterion < kCriteria, "criterion must be 0 to ",
                  kCriteria - 1, ", got ", rule.criterion);
  STD_TORCH_CHECK(rule.max_skip >= 0, "max_skip must be at least 0, got ", rule.max_skip);
  STD_TORCH_CHECK(rule.stages >= 1, "stages must be at least 1, got ", rule.stages);
  const int64_t least = least_warmup(rule.criterion);
  STD_TORCH_CHECK(rule.warmup >= least, "warmup must be at least ", least,
                  " for this criterion, got ", rule.warmup);
  STD_TORCH_CHECK(t.outputs.has_value() == t.weights.has_value(),
                  "outputs and weights must be given together");
  STD_TORCH_CHECK(!needs_table(rule.criterion) || (t.outputs && t.rule_table),
                  "outputs, weights and rule_table must be given for this criterion");
  STD_TORCH_CHECK(t.outputs || !t.rule_table, "rule_table must come with outputs and weights");
}

// Whether a GPU may move 16 bytes at a time, and find a ring's slot by a product.
inline void check_alignment(Args* a) {
  const int64_t all = int64_t{1} << 32;
  a->ring_inverse = static_cast<uint32_t>((all + a->R - 1) / a->R);
  a->aligned = a->N % 8 == 0 && a->N < all / 2 - 4 * kPiece && a->T + a->R < all / a->R;
  for (const void* at : {static_cast<const void*>(a->latents), static_cast<const void*>(a->history),
                         static_cast<const void*>(a->outputs), static_cast<const void*>(a->noise),
                         static_cast<const void*>(a->model_input), a->model_output})
    a->aligned = a->aligned && reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

// Checks the tensors that the shapes of the others follow from, takes their sizes, and then all.
inline void check_tensors(const Tensors& t, Args* a) {
  STD_TORCH_CHECK(t.latents.dim() == 3, "latents must have 3 dimensions [R, B, N], got ",
                  t.latents.dim());
  STD_TORCH_CHECK(t.rows.dim() == 2 && t.rows.size(0) > 0 && t.rows.size(1) > kRowScalars &&
                      t.rows.size(1) <= kRowScalars + kMaxHistory,
                  "rows must have shape [T, 10 + K] with T >= 1 and 1 <= K <= 8, got ",
                  shape_of(t.rows));
  STD_TORCH_CHECK(t.model_output.dim() == 2, "model_output must have 2 dimensions, got ",
                  t.model_output.dim());
  const int64_t R = t.latents.size(0), B = t.latents.size(1), N = t.latents.size(2);
  const int64_t T = t.rows.size(0), K = t.rows.size(1) - kRowScalars;
  const int64_t M = t.model_output.size(0), pieces = N > kPiece ? (N + kPiece - 1) / kPiece : 1;
  STD_TORCH_CHECK(a->rule.stages <= (R - 1) / 3, "latents must hold at least ",
                  3 * least(a->rule.stages, 1 << 20) + 1, " steps, got ", R);
  STD_TORCH_CHECK(M == B || M == 2 * B, "model_output must have ", B, " or ", 2 * B, " rows, got ",
                  M);
  STD_TORCH_CHECK(!t.weights || (t.weights->dim() == 4 && t.weights->size(1) > 0),
                  "weights must have shape [T, G, G, ", kWeights, "] with G >= 1, got ",
                  shape_of(*t.weights));
  STD_TORCH_CHECK(!t.rule_table || (t.rule_table->dim() == 4 && t.rule_table->size(2) > 0),
                  "rule_table must have shape [T, G, Q, ", kPredictors, "] with Q >= 1, got ",
                  shape_of(*t.rule_table));
  // One sample's place does not depend on how much is spare behind the last.
  STD_TORCH_CHECK(!t.workspace || (t.workspace->dim() == 3 && t.workspace->size(1) > pieces),
                  "workspace must have shape [B, P, 16] with P > ", pieces, ", got ",
                  shape_of(*t.workspace));
  const int64_t G = t.weights ? t.weights->size(1) : 0;
  const int64_t Q = t.rule_table ? t.rule_table->size(2) : 0;
  const int64_t P = t.workspace ? t.workspace->size(1) : 0;
#define AK_FIELD(name, type, written, optional, ...)                   \
  if (const Tensor* tensor = given(t.name)) {                          \
    expect(*tensor, #name, type, {__VA_ARGS__});                       \
    a->name = static_cast<Pointer<type, written>>(tensor->data_ptr()); \
  }
  AK_FIELDS(AK_FIELD)
#undef AK_FIELD
  // Its sums are read two at a time.
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(a->workspace) % 16 == 0,
                  "workspace must begin on a boundary of 16 bytes");
  a->R = R, a->B = B, a->N = N, a->K = K, a->T = T, a->G = G, a->Q = Q;
  a->width = kRowScalars + K;
  a->guided = B > 0 && M == 2 * B;
  a->pieces = pieces;
  a->workspace_stride = P * kSums;
  a->input_type = t.model_input.scalar_type();
  a->output_type = t.model_output.scalar_type();
  a->timestep_type = t.timestep.scalar_type();
}

inline Args check(const Tensors& t, const Rule& rule, const Condition& condition) {
  for_each_tensor(t, check_given);
  check_rule(t, rule);
  Args a = {};
  a.rule = rule;
  check_tensors(t, &a);
  a.rule.batch_wide = rule.batch_wide && a.B > 1;
  a.conditional = condition.has_value();
  a.condition = static_cast<uint64_t>(condition.value_or(0));
  STD_TORCH_CHECK(a.B > 0 || !a.conditional, "condition needs at least one sample");
  check_alignment(&a);
  std::vector<Extent> extents;
  for_each_tensor(t, [&](const Tensor& tensor, const char* name, bool written) {
    extents.push_back(extent(tensor, name, written));
  });
  expect_apart(extents);
  return a;
}

}  // namespace ak
