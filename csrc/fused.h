// The common step in one loop: no older history, no noise, one network call per whole step.
//
// Reads each stream once and writes each once, sixteen lanes at a time in the compiler's vector
// types (a plain lane loop stays scalar in gcc). Same operations in the same order as the general
// loops of tile.h, so both give the same bits.
#pragma once

#include "convert.h"
#include "decide.h"
#include "step_args.h"

namespace ak {

constexpr int64_t kLanes = 16;
constexpr int64_t kBlock = 256;  // elements converted at a time; three such rows fit the L1 cache

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float LooseVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t VecBits __attribute__((vector_size(4 * kLanes)));

typedef uint16_t Words __attribute__((vector_size(2 * kLanes)));
typedef uint16_t LooseWords __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

AK_HD Vec load_vec(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
AK_HD void store_vec(Vec value, float* to) { *reinterpret_cast<LooseVec*>(to) = value; }

AK_HD Vec load_vec(const BFloat16* from) {
  const Words words = *reinterpret_cast<const LooseWords*>(from);
  return (Vec)(__builtin_convertvector(words, VecBits) << 16);
}
AK_HD void store_vec(Vec value, BFloat16* to) {
  const VecBits bits = (VecBits)value;
  const VecBits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecBits nan = (VecBits)((bits & 0x7fffffffu) > 0x7f800000u);
  *reinterpret_cast<LooseWords*>(to) =
      __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Words);
}

// What the criterion adds up.
enum SumsOf { kNothing, kAbsolute, kSquares, kSquaresAndThird };

struct Lanes {
  Vec third = {}, first = {};
};

// Model output and network input in a type the loop itself converts, float or BFloat16.
template <typename T>
struct Network {
  const T* m;
  T* input;
};

struct Streams {
  const float *x, *x_1, *x_2;
  float* x_next;
};

AK_HD Streams shifted(const Streams& s, int64_t by) {
  return {s.x + by, s.x_1 + by, s.x_2 + by, s.x_next + by};
}

template <SumsOf kSums, typename T>
AK_HD void fused(const Row& row, int64_t n, const Network<T>& net, const Streams& s, Lanes* lanes) {
  const float p = row.p, q = row.q, A = row.A, C = row.C[0], c = row.input_scale;
  const int64_t whole = n / kLanes * kLanes;
  Vec third = lanes->third, first = lanes->first;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec x = load_vec(s.x + i);
    const Vec next = A * x + C * (p * x + q * load_vec(net.m + i));
    const Vec change = next - x;
    if (kSums == kSquaresAndThird) {
      const Vec d = (next - load_vec(s.x_2 + i)) - 3.0f * (x - load_vec(s.x_1 + i));
      third += d * d;
    }
    if (kSums == kAbsolute) first += (Vec)((VecBits)change & 0x7fffffffu);
    if (kSums >= kSquares) first += change * change;
    store_vec(next, s.x_next + i);
    store_vec(c * next, net.input + i);
  }
  for (int64_t i = whole; i < n; ++i) {
    const float x = s.x[i], next = update(row, x, keep(row, x, load(net.m[i]))), change = next - x;
    if (kSums == kSquaresAndThird) {
      const float d = third_difference(next, x, s.x_1[i], s.x_2[i]);
      third[i - whole] += d * d;
    }
    if (kSums != kNothing)
      first[i - whole] += kSums == kAbsolute ? std::fabs(change) : change * change;
    s.x_next[i] = next;
    store(c * next, net.input + i);
  }
  *lanes = {third, first};
}

// Converts a block of the model output, runs it, converts the block of network input.
template <SumsOf kSums, typename T>
AK_HD void fused_blocks(const Args& a, const Row& row, int64_t b, int64_t begin, int64_t n,
                        const Streams& s, Lanes* lanes) {
  const T* output = static_cast<const T*>(a.model_output) + b * a.N + begin;
  T* input = static_cast<T*>(a.model_input) + b * a.N + begin;
  const int64_t half = a.B * a.N;
  float m[kBlock], conditional[kBlock], scaled[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t k = kBlock < n - i ? kBlock : n - i;
    load_row(output + i, k, m);
    if (a.guided) {
      load_row(output + half + i, k, conditional);
      for (int64_t j = 0; j < k; ++j) m[j] = guide(m[j], conditional[j], a.guidance_scale[b]);
    }
    fused<kSums>(row, k, Network<float>{m, scaled}, shifted(s, i), lanes);
    store_row(scaled, k, input + i);
    if (a.guided) store_row(scaled, k, input + half + i);
  }
}

template <SumsOf kSums, typename T>
AK_HD void fused_direct(const Args& a, const Row& row, int64_t b, int64_t begin, int64_t n,
                        const Streams& s, Lanes* lanes) {
  const int64_t at = b * a.N + begin;
  const Network<T> net = {static_cast<const T*>(a.model_output) + at,
                          static_cast<T*>(a.model_input) + at};
  fused<kSums>(row, n, net, s, lanes);
}

template <SumsOf kSums>
AK_HD void fused_types(const Args& a, const Row& row, int64_t b, int64_t begin, int64_t n,
                       const Streams& s, Lanes* lanes) {
  constexpr ScalarType kFloat = ScalarType::Float, kHalf = ScalarType::Half;
  if (a.output_type == kHalf)
    fused_blocks<kSums, Half>(a, row, b, begin, n, s, lanes);
  else if (a.output_type == kFloat && a.guided)
    fused_blocks<kSums, float>(a, row, b, begin, n, s, lanes);
  else if (a.output_type == kFloat)
    fused_direct<kSums, float>(a, row, b, begin, n, s, lanes);
  else if (a.guided)
    fused_blocks<kSums, BFloat16>(a, row, b, begin, n, s, lanes);
  else
    fused_direct<kSums, BFloat16>(a, row, b, begin, n, s, lanes);
}

}  // namespace ak
