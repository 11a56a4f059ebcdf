// What the ops know of tensors, by LibTorch's stable ABI; other headers know its dtypes at most.
// Arguments are checked here so that a direct call of an op with a wrong tensor raises instead of
// reading past its end.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "op/fields.h"

namespace ak {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Half = c10::Half;
using BFloat16 = c10::BFloat16;

inline int64_t element_size(ScalarType type) {
  switch (type) {
    case ScalarType::Long:
    case ScalarType::Double:
      return 8;
    case ScalarType::Int:
    case ScalarType::Float:
      return 4;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    default:
      return 1;
  }
}

inline const char* type_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

inline std::string shape_text(const int64_t* sizes, size_t count) {
  std::ostringstream text;
  text << "(";
  for (size_t i = 0; i < count; ++i) text << (i ? ", " : "") << sizes[i];
  text << ")";
  return text.str();
}

inline std::string shape_of(const Tensor& t) {
  return shape_text(t.sizes().data(), t.sizes().size());
}

inline bool holds(FieldType field, ScalarType type) {
  switch (field) {
    case kFloat32:
      return type == ScalarType::Float;
    case kFloat64:
      return type == ScalarType::Double;
    case kInt32:
      return type == ScalarType::Int;
    case kInt64:
      return type == ScalarType::Long;
    case kBool:
      return type == ScalarType::Bool;
    case kNetworkType:
      return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16;
    default:
      return type == ScalarType::Float || type == ScalarType::Long;
  }
}

inline const char* types_of(FieldType field) {
  constexpr const char* kNames[] = {"float32",         "float64", "int32",
                                    "int64",           "bool",    "float32, float16 or bfloat16",
                                    "float32 or int64"};
  return kNames[field];
}

inline void expect(const Tensor& t, const char* name, FieldType type,
                   std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(holds(type, t.scalar_type()), name, " must be ", types_of(type), ", got ",
                  type_name(t.scalar_type()));
  const auto sizes = t.sizes();
  bool same = sizes.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape.begin()[i];
  STD_TORCH_CHECK(same, name, " must have shape ", shape_text(shape.begin(), shape.size()),
                  ", got ", shape_of(t));
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous, got strides ",
                  shape_text(t.strides().data(), t.strides().size()));
}

// A written buffer may share no byte with any other argument.
struct Extent {
  const char* name;
  const char* begin;
  const char* end;
  bool written;
};

inline Extent extent(const Tensor& t, const char* name, bool written = false) {
  const char* begin = static_cast<const char*>(t.data_ptr());
  return {name, begin, begin + t.numel() * element_size(t.scalar_type()), written};
}

inline void expect_apart(const std::vector<Extent>& extents) {
  for (size_t i = 0; i < extents.size(); ++i)
    for (size_t j = i + 1; j < extents.size(); ++j) {
      const Extent &a = extents[i], &b = extents[j];
      const bool overlap = a.begin < b.end && b.begin < a.end;
      STD_TORCH_CHECK(!(overlap && (a.written || b.written)), a.name, " and ", b.name,
                      " must not share memory");
    }
}

}  // namespace ak
