// Sums over a sample on a GPU: the same bits every run, whatever the batch, the size of the grid
// and the number of threads of a block.
//
// Four neighbours are added in float; the 512 sums of a piece in a balanced tree, neighbours first;
// the pieces in 256 strands (piece 0, 256, 512, ... and so on) and those in the same kind of tree.
// A block that arrives last of its sample finds every piece's sums in the workspace.
#pragma once

#include <cuda_runtime.h>

#include "progress.h"

// The emulation of a GPU in the tests supplies its own.
#if !defined(AK_SHARED)
#define AK_SHARED(type, name) __shared__ type name
#define AK_DYNAMIC_SHARED(type, name)                    \
  extern __shared__ __align__(16) char dynamic_memory[]; \
  type* name = reinterpret_cast<type*>(dynamic_memory)
#endif

namespace ak {

// The first 16 numbers of a sample's workspace. Counters are zero between launches.
struct Head {
  uint32_t arrived;                // blocks
  uint32_t waiting, generation;    // of the grid's barrier; of sample 0
  uint32_t concluded, unfinished;  // samples, for the condition of a graph; of sample 0
  int32_t length;                  // of the sample's run
  double first;
};
static_assert(sizeof(Head) <= kSums * sizeof(double), "the head is one row of the workspace");

enum Column : int { kThirdColumn = 0, kFirstColumn = 1, kDefectColumn = 2 };

__device__ __forceinline__ Head* head_of(const Args& a, int64_t b) {
  return reinterpret_cast<Head*>(a.workspace + b * a.workspace_stride);
}

__device__ __forceinline__ double* column_of(const Args& a, int64_t b, int column) {
  return a.workspace + b * a.workspace_stride + kSums + column * a.pieces;
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// By a whole warp: the sum over all pieces of a column.
__device__ __forceinline__ double column_total(const double* column, int64_t pieces) {
  constexpr int kStrands = 8;
  const int lane = threadIdx.x % 32;
  double strand[kStrands] = {};
  for (int64_t from = 0; from < pieces; from += 32 * kStrands) {
#pragma unroll
    for (int k = 0; k < kStrands; ++k) {
      const int64_t piece = from + 32 * k + lane;
      if (piece < pieces) strand[k] += __ldcg(column + piece);
    }
  }
#pragma unroll
  for (int k = 0; k < kStrands; ++k)
    if (32 * k < pieces) strand[k] = warp_sum(strand[k]);
  return ((strand[0] + strand[1]) + (strand[2] + strand[3])) +
         ((strand[4] + strand[5]) + (strand[6] + strand[7]));
}

// One number of every warp of a block, for up to kSums columns.
template <int kThreads>
using WarpSums = double[kSums][kThreads / 32];

// By a whole block, after lane 0 of every warp wrote `sums` and a barrier: writes the piece's sums
// of the columns in `columns`, a mask.
template <int kThreads>
__device__ __forceinline__ void write_piece(const Args& a, int64_t b, int64_t piece,
                                            uint32_t columns, const WarpSums<kThreads>& sums) {
  constexpr int kWarps = kThreads / 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int column = warp; column < kSums; column += kWarps) {
    if (!(columns >> column & 1u)) continue;
    const double sum = warp_sum(lane < kWarps ? sums[column][lane] : 0.0);
    if (lane == 0) column_of(a, b, column)[piece] = sum;
  }
}

// By a whole block: whether it is the last of `expected` to arrive. Then every block's writes
// before its own arrival can be read.
__device__ __forceinline__ bool arrive_last(uint32_t* arrived, int64_t expected) {
  AK_SHARED(bool, last);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(arrived, 1u) == static_cast<uint32_t>(expected - 1);
    if (last) *arrived = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// By a whole block, whose blocks must all run at once: waits until every block is here.
__device__ __forceinline__ void wait_for_grid(Head* head) {
  __syncthreads();
  if (threadIdx.x == 0) {
    volatile uint32_t* generation = &head->generation;
    const uint32_t mine = *generation;
    __threadfence();
    if (atomicAdd(&head->waiting, 1u) == gridDim.x - 1) {
      head->waiting = 0;
      __threadfence();
      atomicAdd(&head->generation, 1u);
    } else {
      while (*generation == mine) __nanosleep(32);
    }
    __threadfence();
  }
  __syncthreads();
}

// By one thread, once for every sample of a launch: the last one sets the graph's condition.
__device__ __forceinline__ void tell_graph(const Args& a, const Place& at) {
  if (!a.conditional) return;
  Head* head = head_of(a, 0);
  if (moves(a, at, true)) atomicExch(&head->unfinished, 1u);
  __threadfence();
  if (atomicAdd(&head->concluded, 1u) != static_cast<uint32_t>(a.B - 1)) return;
  __threadfence();
  head->concluded = 0;
  cudaGraphSetConditional(a.condition, atomicExch(&head->unfinished, 0u));
}

}  // namespace ak
