// Sums over a sample on a GPU: the same bits every run, whatever the batch, the size of the grid
// and the number of threads of a block.
//
// A thread adds the terms of four neighbours in float, by fused multiply-adds; 32 neighbouring
// threads in a balanced tree, neighbours first; the eight such groups of a piece in another; of a
// large sample two pieces: that is a message. Messages are added in double, in 256 strands (message
// 0, 256, 512, ... and so on), and those in the same kinds of tree.
#pragma once

#include "cuda/grid/message.h"

namespace ak {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kGroups = 8;  // of a piece, and of the strands
constexpr int kStrands = 32 * kGroups;
static_assert(32 * 4 * kGroups == kPiece, "eight warps have a piece, four elements a thread");

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  return value;
}

template <typename T>
__device__ __forceinline__ T groups_sum(const T (&s)[kGroups]) {
  return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

// warp_sum() of N columns, in N + 3 exchanges or so in place of 5 N: at every stage a lane keeps
// half of the columns. It returns the sum of column *column, if *count is above zero.
template <int N>
__device__ __forceinline__ float column_sums(const float (&v)[N], int distance, int* column,
                                             int* count) {
  if constexpr (N == 1) {
    float sum = v[0];
    for (; distance < 32; distance *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, distance);
    return sum;
  } else {
    constexpr int kHalf = (N + 1) / 2;
    const bool upper = (threadIdx.x & distance) != 0;
    float kept[kHalf];
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      const float high = kHalf + j < N ? v[kHalf + j < N ? kHalf + j : 0] : 0.0f;
      const float given = upper ? v[j] : high;
      kept[j] = (upper ? high : v[j]) + __shfl_xor_sync(kWholeWarp, given, distance);
    }
    *column += upper ? kHalf : 0;
    *count = upper ? *count - kHalf : static_cast<int>(least(*count, kHalf));
    return column_sums<kHalf>(kept, distance * 2, column, count);
  }
}

// The sums of the groups of a block's piece or two.
template <int kColumns>
using GroupSums = float[2][kColumns > 0 ? kColumns : 1][kGroups];

// By a whole warp: its sums of N columns, from column `from` on. A warp has group warp % 8 of the
// block's piece `piece`.
template <int N, int kColumns>
__device__ __forceinline__ void leave_sums(const float (&v)[N], int piece, int from,
                                           GroupSums<kColumns>& to) {
  int column = 0, count = N;
  const float sum = column_sums<N>(v, 1, &column, &count);
  if (count > 0) to[piece][from + column][threadIdx.x / 32 % kGroups] = sum;
}

// By the first warp, when the block's sums are there: sends those of the block's pieces, of which
// `piece` is the first and `own` are there.
template <int kColumns>
__device__ __forceinline__ void send_sums(const Args& a, int64_t b, int64_t piece, int own,
                                          int columns, uint32_t number,
                                          const GroupSums<kColumns>& sums) {
  const int lane = threadIdx.x % 32, column = lane % kSums, half = lane / kSums;
  const bool mine = column < columns && half < own && piece + half < a.pieces;
  const float sum = mine ? groups_sum(sums[half][column]) : 0.0f;
  if (in_pairs(a)) {
    const float second = __shfl_xor_sync(kWholeWarp, sum, static_cast<int>(kSums));
    if (half == 0 && mine)
      send(message_of(a, b, piece / 2) + column, to_bits(sum + second), number);
  } else if (mine) {
    send(message_of(a, b, piece + half) + column, to_bits(sum), number);
  }
}

__device__ __forceinline__ double sum_in(uint64_t word) {
  return static_cast<double>(from_bits(static_cast<uint32_t>(word)));
}

// A column's sums of the groups of strands.
using StrandSums = double[kGroups];

// By a whole warp: a group of strands of two columns, of which the second is there with `both`.
// Waits for messages that have not come.
template <int kBatch>
__device__ __forceinline__ void add_messages(const Args& a, int64_t b, uint32_t number, int group,
                                             int column, bool both, StrandSums* to) {
  const int64_t rows = messages(a);
  const uint64_t* first = message_of(a, b, 0) + column;
  double sum_0 = 0.0, sum_1 = 0.0;
  for (int64_t row = 32 * group + threadIdx.x % 32; row < rows; row += kBatch * kStrands) {
    // Set, so that no register is kept for what was not read.
    uint64_t words[kBatch][2] = {};
#pragma unroll
    for (int k = 0; k < kBatch; ++k)
      if (row + k * kStrands < rows) load_relaxed(first + (row + k * kStrands) * kSums, words[k]);
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (row + k * kStrands >= rows) continue;
      wait_for(first + (row + k * kStrands) * kSums, number, both, words[k]);
      sum_0 += sum_in(words[k][0]);
      if (both) sum_1 += sum_in(words[k][1]);
    }
  }
  sum_0 = warp_sum(sum_0);
  if (both) sum_1 = warp_sum(sum_1);
  if (threadIdx.x % 32 != 0) return;
  to[column][group] = sum_0;
  if (both) to[column + 1][group] = sum_1;
}

}  // namespace ak
