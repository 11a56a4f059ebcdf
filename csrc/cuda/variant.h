// What a kernel is compiled for.
#pragma once

#include <type_traits>

#include "op/args.h"

namespace ak {

// Which sums a criterion takes of a step: none, the squares of the third and the first difference,
// the absolute first difference, the squares of a refresh's defect.
enum Summed : int { kSumNothing, kSumThird, kSumFirst, kSumDefect };

// T: dtype of the network's rows; void: of any two dtypes, rows that stand anywhere, a sampling of
// any length. filled: with kept outputs. history: with more than one term of it, perhaps. noise: as
// far as the table has it; without, a step that would add some leaves NaN.
template <typename T, Summed summed_, bool filled_, bool history_, bool noise_>
struct Variant {
  using Network = T;
  static constexpr bool aligned = !std::is_void_v<T>;
  static constexpr Summed summed = summed_;
  static constexpr bool filled = filled_, history = history_, noise = noise_;
  // Sums of one step.
  static constexpr int columns = summed == kSumThird ? 2 : summed == kSumNothing ? 0 : 1;
};

// Where those stand.
constexpr int kThirdColumn = 0;
template <typename V>
constexpr int kFirstColumn = V::summed == kSumThird ? 1 : 0;
constexpr int kDefectColumn = 0;

AK_HD Summed summed_by(int64_t criterion) {
  return needs_third(criterion)    ? kSumThird
         : needs_first(criterion)  ? kSumFirst
         : needs_defect(criterion) ? kSumDefect
                                   : kSumNothing;
}

// The criterion, which is one of those that take the kernel's sums: so that the compiler leaves out
// what the others are.
template <typename V>
AK_HD int64_t known_criterion(int64_t criterion) {
  int64_t known = -1;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int64_t code = 0; code < kCriteria; ++code)
    if (summed_by(code) == V::summed && (known < 0 || criterion == code)) known = code;
  return known;
}

// The arguments with what a kernel knows of them when it is compiled; `whole`: its steps are whole
// ones.
template <typename V>
AK_HD Args known(Args a, bool whole) {
  a.rule.criterion = known_criterion<V>(a.rule.criterion);
  if (whole) a.rule.stages = 1;
  return a;
}

template <Summed summed>
using Sum = std::integral_constant<Summed, summed>;

// Calls launch(Sum<...>(), std::bool_constant<filled>()).
template <typename Launch>
auto with_rule(const Args& a, Launch launch) {
  using Filled = std::true_type;
  using Reused = std::false_type;
  switch (summed_by(a.rule.criterion)) {
    case kSumThird:
      return a.outputs ? launch(Sum<kSumThird>(), Filled()) : launch(Sum<kSumThird>(), Reused());
    case kSumFirst:
      return a.outputs ? launch(Sum<kSumFirst>(), Filled()) : launch(Sum<kSumFirst>(), Reused());
    case kSumDefect:
      return launch(Sum<kSumDefect>(), Filled());
    default:
      return a.outputs ? launch(Sum<kSumNothing>(), Filled())
                       : launch(Sum<kSumNothing>(), Reused());
  }
}

// A fill under a rule by differences is seldom asked for: its kernels are compiled with a history
// and noise alone.
template <Summed summed, bool filled>
constexpr bool kSeldom = filled && (summed == kSumThird || summed == kSumFirst);

// Whether every row is moved 16 bytes at a time and the network reads what it writes.
inline bool is_regular(const Args& a) { return a.aligned && a.input_type == a.output_type; }

// Calls launch(Identity<T>()) with the dtype of a regular network.
template <typename T>
struct Identity {
  using type = T;
};
template <typename Launch>
auto with_network(const Args& a, Launch launch) {
  switch (a.output_type) {
    case ScalarType::Float:
      return launch(Identity<float>());
    case ScalarType::Half:
      return launch(Identity<Half>());
    default:
      return launch(Identity<BFloat16>());
  }
}

}  // namespace ak
