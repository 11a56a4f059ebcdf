// The memory in which the blocks of a sample meet: a row of numbers of its own, then a row of
// messages for each piece.
#pragma once

#include "cuda/grid/device.h"
#include "op/args.h"

namespace ak {

// The first row of a sample's workspace. Counters are zero between launches.
struct Head {
  uint32_t arrived;    // blocks of the sample; of sample 0: of the batch, where it decides together
  uint32_t concluded;  // samples, for the condition of a graph; of sample 0
  uint32_t launches;   // in which the sample moved; the next number is that of a launch's messages
  uint32_t unfinished;  // as concluded
  uint64_t length;      // a message: of the sample's run
  double first;         // the sample's own sum, where the batch decides together
};
static_assert(sizeof(Head) <= kSums * sizeof(double), "the head is one row of the workspace");

__device__ __forceinline__ Head* head_of(const Args& a, int64_t b) {
  return reinterpret_cast<Head*>(a.workspace + b * a.workspace_stride);
}

// A large sample's pieces share messages in twos: one block must read all of them.
constexpr int64_t kMostSinglePieces = 256;

__device__ __forceinline__ bool in_pairs(const Args& a) { return a.pieces > kMostSinglePieces; }

// Rows of messages of a sample.
__device__ __forceinline__ int64_t messages(const Args& a) {
  return in_pairs(a) ? (a.pieces + 1) / 2 : a.pieces;
}

__device__ __forceinline__ uint64_t* message_of(const Args& a, int64_t b, int64_t row) {
  return reinterpret_cast<uint64_t*>(a.workspace + b * a.workspace_stride) + (1 + row) * kSums;
}

}  // namespace ak
