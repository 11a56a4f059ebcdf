// The memory in which the blocks of a sample meet, and shared memory.
#pragma once

#include <cuda_runtime.h>

#include "op/args.h"

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

}  // namespace ak
