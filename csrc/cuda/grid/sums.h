// Sums over a sample on a GPU: the same bits every run, whatever the batch, the size of the grid
// and the number of threads of a block.
//
// Four neighbours are added in float; the 512 sums of a piece in a balanced tree, neighbours first;
// the pieces in 256 strands (piece 0, 256, 512, ... and so on) and those in the same kind of tree.
// A block that arrives last of its sample finds every piece's sums in the workspace.
#pragma once

#include "cuda/grid/memory.h"

namespace ak {

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

}  // namespace ak
