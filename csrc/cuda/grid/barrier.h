// Blocks that wait for each other, or find out who is last.
#pragma once

#include "cuda/grid/memory.h"

namespace ak {

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

}  // namespace ak
