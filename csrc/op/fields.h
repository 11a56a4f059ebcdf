// The tensors of `step` and `advance`, in the ops' order. adaptive_kernels/ops/fields.py has the
// same table and says what each of them is; tests/ops/test_fields.py holds the two together.
#pragma once

#include <cstdint>
#include <tuple>
#include <type_traits>

namespace ak {

// FIELD(name, type, written or read, always or optional, shape...)
#define AK_FIELDS(FIELD)                                              \
  FIELD(latents, kFloat32, kWritten, kAlways, R, B, N)                \
  FIELD(history, kFloat32, kWritten, kAlways, K - 1, B, N)            \
  FIELD(model_input, kNetworkType, kWritten, kAlways, M, N)           \
  FIELD(timestep, kTimestepType, kWritten, kAlways, M)                \
  FIELD(progress, kInt32, kWritten, kAlways, kProgressRows, B)        \
  FIELD(measures, kFloat64, kWritten, kAlways, B, kMeasures)          \
  FIELD(refreshed, kBool, kWritten, kAlways, T, B)                    \
  FIELD(score, kFloat32, kWritten, kAlways, T, B)                     \
  FIELD(outputs, kFloat32, kWritten, kOptional, kOutputs, B, N)       \
  FIELD(workspace, kFloat64, kWritten, kOptional, B, P, kSums)        \
  FIELD(model_output, kNetworkType, kRead, kAlways, M, N)             \
  FIELD(guidance_scale, kFloat32, kRead, kAlways, B)                  \
  FIELD(threshold, kFloat32, kRead, kAlways, B)                       \
  FIELD(output_noise, kFloat32, kRead, kAlways, B)                    \
  FIELD(rows, kFloat32, kRead, kAlways, T, kRowScalars + K)           \
  FIELD(weights, kFloat32, kRead, kOptional, T, G, G, kWeights)       \
  FIELD(rule_table, kFloat32, kRead, kOptional, T, G, Q, kPredictors) \
  FIELD(seed, kInt64, kRead, kOptional, B)                            \
  FIELD(noise, kFloat32, kRead, kOptional, T, B, N)

enum FieldType { kFloat32, kFloat64, kInt32, kInt64, kBool, kNetworkType, kTimestepType };
constexpr bool kWritten = true, kRead = false;
constexpr bool kOptional = true, kAlways = false;

// Rows of `progress`.
enum ProgressRow { kIndex, kRun, kNfe, kLastCall, kCallBefore, kProgressRows };
constexpr int64_t kMeasures = 6;
constexpr int64_t kMaxHistory = 8;

// A GPU sums over pieces of this many elements, in an order that only N decides. The workspace of
// a sample is [P, 16] of 8 bytes with P > pieces: a head (cuda/grid/memory.h), then up to 16 sums
// of each piece.
constexpr int64_t kPiece = 1024;
constexpr int64_t kSums = 16;

// In the order of FieldType; void: one of several.
template <FieldType type>
using Holds =
    std::tuple_element_t<type, std::tuple<float, double, int32_t, int64_t, bool, void, void>>;

template <FieldType type, bool written>
using Pointer = std::conditional_t<written, Holds<type>, const Holds<type>>*;

}  // namespace ak
