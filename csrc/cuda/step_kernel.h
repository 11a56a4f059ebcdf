// CUDA kernel of `step`, and its launch.
//
// Computes: what cpu/step.cpp computes, for all samples in one launch.
// Work: a block of 256 threads takes pieces of 2048 elements of one sample, 8 neighbours a thread.
// The block that arrives last of a sample (of the batch, where it decides together) adds the sums
// of all pieces and decides.
// Bytes per element: as cpu/step.cpp; 24 of sums per piece at most.
#pragma once

#include <cstddef>

#include "cuda/grid/launch.h"
#include "cuda/step_finish.h"
#include "cuda/thread/solve.h"

namespace ak {

constexpr int kStepThreads = 256;
constexpr int kStepElements = 8;
static_assert(kStepThreads * kStepElements == kPiece, "a block does a piece at a time");

// What all threads of a block read of a sample's step; in shared memory, since registers are what
// limits how many blocks run at once.
struct Coefficients {
  Row row;
  Weights weights;
  float C[kMaxHistory];
  float share;
};

// By a whole block: a number a thread, all on their way together.
__device__ __forceinline__ void read_coefficients(const Args& a, const Place& at,
                                                  Coefficients* to) {
  static_assert(offsetof(Row, C) == kRowScalars * sizeof(float), "a row's scalars come first");
  const int word = threadIdx.x, entry = threadIdx.x - 32;
  if (word < a.width) {
    const float value = a.rows[at.index * a.width + word];
    if (word < kRowScalars)
      reinterpret_cast<float*>(&to->row)[word] = value;
    else
      to->C[word - kRowScalars] = value;
  }
  if (a.outputs && entry >= 0 && entry < kWeights)
    reinterpret_cast<float*>(&to->weights)[entry] = weights_of(a, at)[entry];
  if (word == 0) {
    to->row.C = to->C;
    to->share = share_at(a, at);
  }
}

// One piece: the new latents, everything that is kept of the step, and every warp's sums.
template <bool kFilled, int kHistory, bool kAligned>
__device__ __forceinline__ void do_piece(const Args& a, const Place& at, int64_t piece, bool begins,
                                         Coefficients& all, WarpSums<kStepThreads>& sums) {
  constexpr int V = kStepElements;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool first = wants_first(a, at), third = wants_third(a, at);
  Elements<V, kHistory, kAligned> g = {};
  g.from = piece * kPiece + threadIdx.x * V;
  g.n = static_cast<int>(least(V, a.N - g.from));
  if (g.n > 0) load_elements<kFilled>(a, at, third, &g);
  if (begins) read_coefficients(a, at, &all);
  // Loads are under way; the coefficients are there, and the last piece's sums are written.
  __syncthreads();
  const Row& row = all.row;
  const auto gather = [&](int column, double value) {
    const double sum = warp_sum(value);
    if (lane == 0) sums[column][warp] = sum;
  };
  if constexpr (kFilled) {
    if (g.n > 0) load_outputs(a, at, all.weights, false, &g);
    if (wants_defect(a, at)) gather(kDefectColumn, sum_defect(at, row, all.weights, g));
  }
  float x_next[V] = {};
  if (g.n > 0) {
    // A history leaves no registers for the outputs: they are read again, from the cache.
    constexpr bool kAgain = kHistory > 1;
    solve<kFilled>(a, at, row, all.weights, &g, x_next, kAgain ? 0.0f : all.share);
    const auto write = [&](const float (&from)[V], float* to) { g.store(from, g.n, to + g.from); };
    write(x_next, ring(a, at, at.index + 1));
    if (at.index + 1 < a.T) write_input(a, at, row, g, x_next);
    if (a.K > 1) write(g.h, kept(a, at, at.index));
    if (kFilled && is_fresh(at)) {
      if (kAgain && all.share != 0.0f) {
        g.load(output(a, at, at.nfe - 1) + g.from, g.n, g.e[1]);
        g.load(output(a, at, at.nfe - 2) + g.from, g.n, g.e[2]);
        leave_share(all.weights, all.share, g.e[1], g.e[2], g.e[0]);
      }
      write(g.e[0], output(a, at, at.nfe));
    }
    // The latents a whole step before the new ones.
    if (first && a.rule.stages > 1)
      g.load(ring(a, at, at.index + 1 - a.rule.stages) + g.from, g.n, g.x);
  }
  if (third) gather(kThirdColumn, sum_third(g.n, x_next, g.x, g.x_1, g.x_2));
  if (first) gather(kFirstColumn, sum_first(a, g.n, x_next, g.x));
}

// A long history needs more registers than two blocks of a multiprocessor share.
template <bool kFilled, int kHistory, bool kAligned>
__global__ void __launch_bounds__(kStepThreads, kHistory > 3 ? 1 : 2)
    step_kernel(const __grid_constant__ Args a, const bool fresh, const uint32_t blocks) {
  AK_SHARED(WarpSums<kStepThreads>, sums);
  AK_SHARED(Coefficients, coefficients);
  AK_SHARED(Besides, besides);
  const uint32_t b = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const Place at = place_of(a, b);
  const bool moving = moves(a, at, fresh);
  if (moving) {
    for (int64_t piece = block; piece < a.pieces; piece += blocks) {
      do_piece<kFilled, kHistory, kAligned>(a, at, piece, piece == block, coefficients, sums);
      __syncthreads();
      write_piece<kStepThreads>(a, b, piece, columns_of(a, at), sums);
    }
  }
  if (a.rule.batch_wide) {
    if (arrive_last(&head_of(a, 0)->arrived, gridDim.x)) finish_together(a, fresh, &besides);
  } else if (!moving) {
    if (block == 0 && threadIdx.x == 0) tell_graph(a, at);
  } else if (arrive_last(&head_of(a, b)->arrived, blocks)) {
    finish_alone(a, b, &besides);
  }
}

// Enough blocks to fill the device twice; each takes several pieces where there are more.
template <bool kFilled, int kHistory, bool kAligned>
cudaError_t launch_step_kernel(const Args& a, bool fresh, cudaStream_t stream) {
  const auto kernel = step_kernel<kFilled, kHistory, kAligned>;
  static Rooms rooms;
  const int64_t wanted = 2 * rooms.of(kernel, kStepThreads, false).blocks / a.B;
  const int64_t blocks = least(a.pieces, wanted > 1 ? wanted : 1);
  return launch(kernel, a.B * blocks, kStepThreads, 0, false, stream, a, fresh,
                static_cast<uint32_t>(blocks));
}

template <bool kFilled>
cudaError_t launch_step_filled(const Args& a, bool fresh, cudaStream_t stream) {
  if (!a.aligned) return launch_step_kernel<kFilled, kMaxHistory, false>(a, fresh, stream);
  if (a.K == 1) return launch_step_kernel<kFilled, 1, true>(a, fresh, stream);
  if (a.K <= 3) return launch_step_kernel<kFilled, 3, true>(a, fresh, stream);
  return launch_step_kernel<kFilled, kMaxHistory, true>(a, fresh, stream);
}

inline cudaError_t launch_step(const Args& a, bool fresh, cudaStream_t stream) {
  return a.outputs ? launch_step_filled<true>(a, fresh, stream)
                   : launch_step_filled<false>(a, fresh, stream);
}

}  // namespace ak
