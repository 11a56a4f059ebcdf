// What a block of `advance` knows of its item, a sample's share, and what it keeps of the elements
// between the halves of a run.
#pragma once

#include "cuda/thread/load.h"

namespace ak {

constexpr int64_t kUnit = 2 * kPiece;  // elements of a block at a time

// How the samples are shared out among blocks, and of how many units each keeps what the second
// half needs in shared memory.
struct Shares {
  uint32_t items, blocks;  // of all samples, of one
  int32_t shelves;
};

// What all threads of a block know of its item; in shared memory, since registers are what limits
// how many blocks run at once.
struct Item {
  Place at;
  uint32_t number;  // of the launch's messages
  int32_t candidates, columns;
  float scale;
  int64_t length;  // of the run
  Rows rows;
};

// The run is known, and differences have been taken.
__device__ __forceinline__ void settle(Item* now, int64_t length) {
  now->length = length;
  now->rows.x_1 = now->rows.x_2 = nullptr;
}

// The arrays of a thread's elements that the second half needs: under `defect`, whose first step is
// taken in the first half, what that step left; else what it starts from.
template <typename V, typename Visit>
__device__ __forceinline__ void visit(const Args& a, Elements<V>* g, Visit each) {
  each(g->x);
  if constexpr (V::summed != kSumDefect) each(g->m);
  if constexpr (V::filled) {
    each(g->e[0]);
    each(g->e[1]);
  }
  if constexpr (V::history) {
#pragma unroll
    for (int k = 0; k < kRunHistory; ++k)
      if (k + 1 < a.K) each(g->old[k]);
  }
}

// How many those are, with a history of K terms.
template <typename V>
constexpr AK_HD int64_t arrays_of(int64_t K) {
  return 1 + (V::summed != kSumDefect) + 2 * V::filled + (V::history ? K - 1 : 0);
}

// A thread reads its own elements alone, 16 bytes beside those of its neighbour: from one array to
// the next are `threads` of them.
template <typename V>
__device__ __forceinline__ void shelve(const Args& a, Elements<V>* g, float4* to, int threads) {
  visit(a, g, [&](const float (&v)[kQuad]) {
    *to = make_float4(v[0], v[1], v[2], v[3]);
    to += threads;
  });
}

template <typename V>
__device__ __forceinline__ void take_back(const Args& a, Elements<V>* g, const float4* from,
                                          int threads) {
  visit(a, g, [&](float (&v)[kQuad]) {
    const float4 four = *from;
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    from += threads;
  });
}

}  // namespace ak
