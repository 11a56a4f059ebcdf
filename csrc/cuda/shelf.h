// How a block of `advance` holds its pieces, and what it keeps of them between the halves.
#pragma once

#include "cuda/thread/load.h"

namespace ak {

constexpr int kAdvanceThreads = 512;
constexpr int kAdvanceElements = 4;
static_assert(kAdvanceThreads * kAdvanceElements == kPiece, "a block does a piece");

constexpr int64_t kPieceBytes = kPiece * sizeof(float);  // of one array

// The arrays of a thread's elements that a run needs again in its second half: no differences, and
// of the outputs two and, in a run that began before, the third in place of the network's.
template <bool kFilled, int kHistory, typename Visit>
__device__ __forceinline__ void visit(const Args& a, const Place& at,
                                      Elements<kAdvanceElements, kHistory, true>* g, Visit each) {
  each(g->x);
  if (!kFilled || is_fresh(at)) each(g->m);
#pragma unroll
  for (int k = 1; k < kHistory; ++k)
    if (k < a.K) each(g->old[k - 1]);
  if constexpr (kFilled) {
    each(g->e[0]);
    each(g->e[1]);
    if (!is_fresh(at)) each(g->e[2]);
  }
}

// How many those are.
inline int64_t arrays_of(const Args& a) { return 2 + a.K - 1 + (a.outputs ? 2 : 0); }

// A block's pieces between the halves: the last stays in registers, the first `shelves` in shared
// memory, others are read again. A thread reads its own elements alone, 16 bytes beside those of
// its neighbour.
template <bool kFilled, int kHistory>
__device__ __forceinline__ void shelve(const Args& a, const Place& at, int64_t arrays,
                                       int64_t shelf, Elements<kAdvanceElements, kHistory, true>* g,
                                       uint4* memory) {
  uint4* to = memory + shelf * arrays * kAdvanceThreads + threadIdx.x;
  visit<kFilled>(a, at, g, [&](const float (&v)[kAdvanceElements]) {
    *to = make_uint4(to_bits(v[0]), to_bits(v[1]), to_bits(v[2]), to_bits(v[3]));
    to += kAdvanceThreads;
  });
}

template <bool kFilled, int kHistory>
__device__ __forceinline__ void take_back(const Args& a, const Place& at, int64_t arrays,
                                          int64_t shelf,
                                          Elements<kAdvanceElements, kHistory, true>* g,
                                          const uint4* memory) {
  const uint4* from = memory + shelf * arrays * kAdvanceThreads + threadIdx.x;
  visit<kFilled>(a, at, g, [&](float (&v)[kAdvanceElements]) {
    v[0] = from_bits(from->x), v[1] = from_bits(from->y);
    v[2] = from_bits(from->z), v[3] = from_bits(from->w);
    from += kAdvanceThreads;
  });
}

}  // namespace ak
