// CUDA kernel of `advance`: the whole run of every sample in one launch, and the choice of it.
//
// Computes: what `step` does until every sample waits, with the same bits.
// Work: blocks of 512 threads, 4 neighbours a thread, so a block does a piece of 2048 elements. The
// length of a run is known before anything is written. Where it takes sums, the grid runs at once
// (cooperatively) and in two halves: every block gathers its piece's sums, of the defect or of all
// the steps the run may have; a sample's last block decides the whole run; after a barrier every
// block takes the steps of the run in registers and writes what they leave. From the first half to
// the second a block holds a piece in registers and as many as fit in shared memory; only what does
// not fit there is read again.
// Bytes per element: what the first step reads (twice where not held), 4 for every latent that the
// step after the run reads (three for third_order, else one), the history, a refresh's output and
// one network input; `step` repeated moves all of it at every step.
#pragma once

#include "cuda/advance_run.h"
#include "cuda/step_kernel.h"

namespace ak {

template <bool kFilled, int kHistory>
__global__ void __launch_bounds__(kAdvanceThreads, 1)
    advance_kernel(const __grid_constant__ Args a, const uint32_t blocks, const int32_t arrays,
                   const int32_t shelves) {
  AK_SHARED(WarpSums<kAdvanceThreads>, sums);
  AK_DYNAMIC_SHARED(uint4, memory);
  using Held = Elements<kAdvanceElements, kHistory, true>;
  using Aside = Held[kReady];
  AK_SHARED(Aside, aside);
  AK_SHARED(Ready, ready);
  const uint32_t b = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const Place at = place_of(a, b);
  const bool moving = moves(a, at, true), by_sums = decides_by_sums(a);
  const float share = kFilled ? share_at(a, at) : 0.0f;  // what is decided here changes it
  const auto stand = [&](int64_t piece, Held* g) {
    g->from = piece * kPiece + threadIdx.x * kAdvanceElements;
    g->n = static_cast<int>(least(kAdvanceElements, a.N - g->from));
  };
  const auto load = [&](int64_t piece, bool third, Held* g) {
    stand(piece, g);
    if (g->n <= 0) return;
    load_elements<kFilled>(a, at, third, g);
    if constexpr (kFilled) load_outputs(a, at, weights_at(a, at), true, g);
  };
  Held g = {};
  // The block's pieces are block, block + blocks, ...
  const int64_t last = (a.pieces - 1 - block) / blocks;
  if (!moving && block == 0 && threadIdx.x == 0) tell_graph(a, at);
  if (moving && by_sums) {
    uint32_t columns = 0;
    for (int64_t k = 0; k <= last; ++k) {
      const int64_t piece = block + k * blocks;
      // A run whose first step is too early for a third difference may come to one.
      load(piece, needs_third(a.rule.criterion), &g);
      if (k < last && k < shelves) shelve<kFilled, kHistory>(a, at, arrays, k, &g, memory);
      __syncthreads();
      columns = gather<kFilled, kHistory>(a, at, g, sums);
      __syncthreads();
      write_piece<kAdvanceThreads>(a, b, piece, columns, sums);
    }
    if (arrive_last(&head_of(a, b)->arrived, blocks)) {
      // The warp that decides has registers for its elements or for the decision, and gets that
      // ready while others add.
      const bool decides = threadIdx.x < kReady;
      if (decides) {
        aside[threadIdx.x] = g;
        get_ready(a, at, ready);
        __threadfence_block();
        g = aside[threadIdx.x];
      }
      decide_run(a, b, columns, ready);
      if (threadIdx.x == 0) g = aside[0];
    }
  }
  if (by_sums) wait_for_grid(head_of(a, 0));
  if (!moving) return;
  const int64_t length = by_sums ? __ldcg(&head_of(a, b)->length) : known_length(a, b);
  for (int64_t k = last; k >= 0; --k) {
    const int64_t piece = block + k * blocks;
    if (by_sums && k < last && k < shelves) {
      stand(piece, &g);
      take_back<kFilled, kHistory>(a, at, arrays, k, &g, memory);
    } else if (!by_sums || k < last) {
      load(piece, false, &g);
    }
    if (g.n > 0) run<kFilled, kHistory>(a, at, length, share, g);
  }
  if (!by_sums && arrive_last(&head_of(a, b)->arrived, blocks)) {
    if (threadIdx.x < kReady) get_ready(a, at, ready);
    decide_run(a, b, 0, ready);
  }
}

// Blocks per sample, and how many pieces each keeps in shared memory.
struct Grid {
  int64_t blocks, shelves;
};

inline Grid grid_of_advance(const Args& a, const Room& room) {
  if (!decides_by_sums(a)) {
    const int64_t blocks = least(a.pieces, 2 * room.blocks / a.B);
    return {blocks > 1 ? blocks : 1, 0};
  }
  if (!room.cooperative) return {0, 0};
  const int64_t plain = least(a.pieces, room.blocks / a.B);
  const int64_t large = least(a.pieces, room.large_blocks / a.B);
  if (plain == a.pieces || large == 0) return {plain, 0};
  const int64_t each = (a.pieces + large - 1) / large;
  return {large, least(each - 1, room.shared_bytes / (arrays_of(a) * kPieceBytes))};
}

template <bool kFilled, int kHistory>
bool launch_advance_kernel(const Args& a, cudaStream_t stream, cudaError_t* error) {
  const auto kernel = advance_kernel<kFilled, kHistory>;
  static Rooms rooms;
  const Grid grid = grid_of_advance(a, rooms.of(kernel, kAdvanceThreads, decides_by_sums(a)));
  if (grid.blocks == 0) return false;
  *error =
      launch(kernel, a.B * grid.blocks, kAdvanceThreads, grid.shelves * arrays_of(a) * kPieceBytes,
             decides_by_sums(a), stream, a, static_cast<uint32_t>(grid.blocks),
             static_cast<int32_t>(arrays_of(a)), static_cast<int32_t>(grid.shelves));
  // Part of a device may be all that this process is given: then its blocks do not run at once.
  if (*error != cudaErrorCooperativeLaunchTooLarge && *error != cudaErrorNotSupported) return true;
  cudaGetLastError();
  *error = cudaSuccess;
  return false;
}

// What the registers of a run hold: one decision per sample, steps that are whole steps where
// differences decide, a short history, and sums of all steps that a run may have.
inline bool fits_one_launch(const Args& a) {
  const int64_t longest = longest_run(a.rule, a.T);
  if (!a.aligned || a.rule.batch_wide || a.K > 3 || longest == 1) return false;
  return !needs_first(a.rule.criterion) || (a.rule.stages == 1 && longest <= kMaxCandidates);
}

template <bool kFilled>
bool launch_advance_filled(const Args& a, cudaStream_t stream, cudaError_t* error) {
  return a.K == 1 ? launch_advance_kernel<kFilled, 1>(a, stream, error)
                  : launch_advance_kernel<kFilled, 3>(a, stream, error);
}

// One launch where it can be done so, else `step` repeated.
inline cudaError_t launch_advance(const Args& a, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (fits_one_launch(a) && (a.outputs ? launch_advance_filled<true>(a, stream, &error)
                                       : launch_advance_filled<false>(a, stream, &error)))
    return error;
  const int64_t longest = longest_run(a.rule, a.T);
  for (int64_t k = 0; k < longest && error == cudaSuccess; ++k)
    error = launch_step(a, k == 0, stream);
  return error;
}

}  // namespace ak
