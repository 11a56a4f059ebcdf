// Messages: four bytes and the number of the launch they belong to, in eight that are stored and
// read at once. Who waits for one reads it until the number is right, so nothing orders a message
// and no counter has to be reset; what else was stored is not known to have arrived with it.
//
// The number is that of the sample's launches before, and one more. Every block reads it before its
// own message goes off; the block that decides writes the new one when it has all messages. So all
// blocks of a launch agree on it, whatever the workspace holds.
//
// With it go the counters and measures that the others have read. What a block has of them is used,
// for a branch or for shared memory, before the barrier before its message: no read of one is still
// on its way when the message leaves. Keep it so.
#pragma once

#include "core/bits.h"
#include "cuda/grid/memory.h"

namespace ak {

__device__ __forceinline__ uint32_t launch_number(const Args& a, int64_t b) {
  const auto* launches = reinterpret_cast<const int32_t*>(&head_of(a, b)->launches);
  return static_cast<uint32_t>(load_now(launches)) + 1u;
}

__device__ __forceinline__ void send(uint64_t* to, uint32_t content, uint32_t number) {
  store_relaxed(to, static_cast<uint64_t>(number) << 32 | content);
}

__device__ __forceinline__ bool has_come(uint64_t word, uint32_t number) {
  return static_cast<uint32_t>(word >> 32) == number;
}

__device__ __forceinline__ uint32_t wait_for(const uint64_t* from, uint32_t number) {
  uint64_t word = load_relaxed(from);
  while (!has_come(word, number)) word = load_relaxed(from);
  return static_cast<uint32_t>(word);
}

// Of two messages beside each other, already read once: until they have come; the second only with
// `both`.
__device__ __forceinline__ void wait_for(const uint64_t* from, uint32_t number, bool both,
                                         uint64_t (&words)[2]) {
  while (!has_come(words[0], number) || (both && !has_come(words[1], number)))
    load_relaxed(from, words);
}

// By a whole block, whose sums were sent: whether it is the last of `expected`.
__device__ __forceinline__ bool arrive_last(uint32_t* arrived, int64_t expected) {
  AK_SHARED(bool, last);
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrived, 1u) == static_cast<uint32_t>(expected - 1);
    if (last) *arrived = 0;
  }
  __syncthreads();
  return last;
}

}  // namespace ak
