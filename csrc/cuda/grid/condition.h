// The end of a launch inside a CUDA graph: whether its loop goes on.
#pragma once

#include "cuda/grid/memory.h"
#include "op/progress.h"

namespace ak {

// By one thread, once for every sample of a launch: the last one sets the graph's condition.
__device__ __forceinline__ void tell_graph(const Args& a, const Place& at) {
  if (!a.conditional) return;
  const uint32_t moving = moves(a, at, true) ? 1u : 0u;
  if (a.B == 1) return cudaGraphSetConditional(a.condition, moving);
  Head* head = head_of(a, 0);
  if (moving) atomicExch(&head->unfinished, 1u);
  __threadfence();
  if (atomicAdd(&head->concluded, 1u) != static_cast<uint32_t>(a.B - 1)) return;
  __threadfence();
  head->concluded = 0;
  cudaGraphSetConditional(a.condition, atomicExch(&head->unfinished, 0u));
}

}  // namespace ak
