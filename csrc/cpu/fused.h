// The common step in one loop: no older history, no noise, one network call per whole step.
//
// Reads each stream once and writes each once, sixteen lanes at a time in the compiler's vector
// types (a plain lane loop stays scalar in gcc). Same operations in the same order as the general
// loops of tile.h, so both give the same bits.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/sample.h"
#include "op/convert.h"

namespace ak {

constexpr int64_t kBlock = 256;  // elements converted at a time; three such rows fit the L1 cache

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecBits __attribute__((vector_size(4 * kLanes)));

typedef uint16_t Words __attribute__((vector_size(2 * kLanes)));

// kLanes elements or one, as the type says.
template <typename V>
AK_HD V load_as(const float* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename V>
AK_HD V load_as(const BFloat16* from) {
  if constexpr (std::is_same_v<V, float>) {
    return load(*from);
  } else {
    Words words;
    std::memcpy(&words, from, sizeof words);
    return (Vec)(__builtin_convertvector(words, VecBits) << 16);
  }
}

AK_HD void store(Vec value, float* to) { std::memcpy(to, &value, sizeof value); }
AK_HD void store(Vec value, BFloat16* to) {
  const VecBits bits = (VecBits)value;
  const VecBits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecBits nan = (VecBits)((bits & 0x7fffffffu) > 0x7f800000u);
  const Words words = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Words);
  std::memcpy(to, &words, sizeof words);
}

AK_HD float absolute(float value) { return std::fabs(value); }
AK_HD Vec absolute(Vec value) { return (Vec)((VecBits)value & 0x7fffffffu); }

// A row's numbers by value: no store of a loop can reach them, so that they stay in registers.
struct Near {
  explicit AK_HD Near(const Row& row)
      : p(row.p),
        q(row.q),
        A(row.A),
        C(row.C[0]),
        input_scale(row.input_scale),
        u(row.u),
        w(row.w),
        ps(row.ps),
        qs(row.qs) {}

  AK_HD float first() const { return C; }

  float p, q, A, C, input_scale, u, w, ps, qs;
};

// What the criterion adds up.
enum SumsOf { kNothing, kAbsolute, kSquares, kSquaresAndThird };

struct Lanes {
  Vec third = {}, first = {};
};

// Model output and network input in a type the loop itself converts, float or BFloat16.
template <typename T>
struct Network {
  const T *m, *conditional;  // with guidance m is the unconditional half
  T *input, *conditional_input;
  float guidance_scale;
};

struct Streams {
  const float *x, *x_1, *x_2;
  float* x_next;
};

AK_HD Streams shifted(const Streams& s, int64_t by) {
  return {s.x + by, s.x_1 + by, s.x_2 + by, s.x_next + by};
}

// The elements from i on that fit V; their terms are added to the sums.
template <SumsOf kSums, bool kGuided, typename V, typename T>
AK_HD void fused_at(const Near& row, int64_t i, const Network<T>& net, const Streams& s, V* third,
                    V* first) {
  const V x = load_as<V>(s.x + i);
  V m = load_as<V>(net.m + i);
  if (kGuided) m = guide(m, load_as<V>(net.conditional + i), net.guidance_scale);
  const V next = update(row, x, keep(row, x, m)), change = next - x;
  if (kSums == kSquaresAndThird) {
    const V d = third_difference(next, x, load_as<V>(s.x_1 + i), load_as<V>(s.x_2 + i));
    *third += d * d;
  }
  if (kSums == kAbsolute) *first += absolute(change);
  if (kSums >= kSquares) *first += change * change;
  store(next, s.x_next + i);
  store(row.input_scale * next, net.input + i);
  if (kGuided) store(row.input_scale * next, net.conditional_input + i);
}

template <SumsOf kSums, bool kGuided, typename T>
AK_HD void fused(const Row& from, int64_t n, const Network<T>& net, const Streams& s,
                 Lanes* lanes) {
  const Near row(from);
  const int64_t whole = n / kLanes * kLanes;
  Vec third = lanes->third, first = lanes->first;
  for (int64_t i = 0; i < whole; i += kLanes)
    fused_at<kSums, kGuided>(row, i, net, s, &third, &first);
  // At most one more element per lane; kept apart so that the sums above stay in registers.
  float last_third[kLanes] = {}, last_first[kLanes] = {};
  for (int64_t i = whole; i < n; ++i)
    fused_at<kSums, kGuided>(row, i, net, s, &last_third[i - whole], &last_first[i - whole]);
  *lanes = {third + load_as<Vec>(last_third), first + load_as<Vec>(last_first)};
}

// Converts a block of the model output, runs it, converts the block of network input: float16 has
// fast conversions for rows only (op/convert.h).
template <SumsOf kSums>
AK_HD void fused_half(const Args& a, const Row& row, int64_t at, int64_t n, float guidance_scale,
                      const Streams& s, Lanes* lanes) {
  const Half* output = static_cast<const Half*>(a.model_output) + at;
  Half* input = static_cast<Half*>(a.model_input) + at;
  const int64_t half = a.B * a.N;
  float m[kBlock], conditional[kBlock], scaled[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t k = kBlock < n - i ? kBlock : n - i;
    load_row(output + i, k, m);
    if (a.guided) {
      load_row(output + half + i, k, conditional);
      for (int64_t j = 0; j < k; ++j) m[j] = guide(m[j], conditional[j], guidance_scale);
    }
    const Network<float> net = {m, nullptr, scaled, nullptr, 0};
    fused<kSums, false>(row, k, net, shifted(s, i), lanes);
    store_row(scaled, k, input + i);
    if (a.guided) store_row(scaled, k, input + half + i);
  }
}

template <SumsOf kSums, typename T>
AK_HD void fused_direct(const Args& a, const Row& row, int64_t at, int64_t n, float guidance_scale,
                        const Streams& s, Lanes* lanes) {
  const T* output = static_cast<const T*>(a.model_output) + at;
  T* input = static_cast<T*>(a.model_input) + at;
  const int64_t half = a.guided ? a.B * a.N : 0;
  const Network<T> net = {output, output + half, input, input + half, guidance_scale};
  if (a.guided)
    fused<kSums, true>(row, n, net, s, lanes);
  else
    fused<kSums, false>(row, n, net, s, lanes);
}

template <SumsOf kSums>
AK_HD void fused_types(const Args& a, const Row& row, int64_t b, int64_t begin, int64_t n,
                       const Streams& s, Lanes* lanes) {
  const int64_t at = b * a.N + begin;
  const float guidance_scale = a.guidance_scale[b];
  if (a.output_type == ScalarType::Half)
    fused_half<kSums>(a, row, at, n, guidance_scale, s, lanes);
  else if (a.output_type == ScalarType::Float)
    fused_direct<kSums, float>(a, row, at, n, guidance_scale, s, lanes);
  else
    fused_direct<kSums, BFloat16>(a, row, at, n, guidance_scale, s, lanes);
}

}  // namespace ak
