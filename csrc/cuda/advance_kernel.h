// CUDA kernel of `advance`: the whole run of every sample in one launch.
//
// Computes: what `step` does until every sample waits, with the same bits.
// Work: the length of a run is known before its steps are taken. A block has 2048 elements of a
// sample at a time, four neighbours a thread. In the first half its sums go off as messages: of the
// defect, or of all the steps the run may have. The sample's last block adds them, decides the run
// and sends its length, for which the others wait; in the second half every block takes the steps
// of the run in registers and writes what they leave. Between the halves a block keeps its last
// pieces and as many of the first as there is room for in shared memory; others are read again. So
// the registers are the decision's while it is taken.
// Samples go on independently: items of (sample, block of it) are taken in order, item i by block
// i modulo the grid.
// No block waits for ever: a rule that takes sums is launched cooperatively, so all blocks run at
// once. Of the samples that are not done take the first: whoever has an item of it has done with
// all items before, which belong to samples before, so all its messages go off, whatever the state
// and the workspace hold. A rule without sums waits for nothing.
// Bytes per element: what the first step reads (twice where not held), 4 for every latent that the
// step after the run reads (three for third_order, else one), the history, a refresh's output and
// one network input; `step` repeated moves all of it at every step.
#pragma once

#include "cuda/advance_decide.h"

namespace ak {

template <int kThreads>
constexpr int kQuadsOf = static_cast<int>(kUnit) / kQuad / kThreads;

template <typename V, int kThreads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    advance_kernel(const __grid_constant__ Args given, const Shares shares) {
  const Args a = known<V>(given, V::summed == kSumThird || V::summed == kSumFirst);
  constexpr int kQuads = kQuadsOf<kThreads>;
  constexpr bool kSends = V::columns > 0, kLarge = kQuads == 1;
  constexpr bool kBegins = V::summed == kSumDefect;
  // Whether the next unit is read while this one is summed: outputs leave no registers for it.
  constexpr bool kEarly = kLarge && !V::filled && !V::history;
  using Sent = GroupSums<kRunColumns<V>>[2];
  AK_DYNAMIC_SHARED(float4, memory);
  AK_SHARED(Steps, steps);
  AK_SHARED(Sent, sums);
  AK_SHARED(Deciding<V>, deciding);
  AK_SHARED(Item, now);
  const int warp = threadIdx.x / 32;
#pragma unroll 1
  for (uint32_t item = blockIdx.x; item < shares.items; item += gridDim.x) {
    const uint32_t b = item / shares.blocks, block = item % shares.blocks;
    const bool decides = block == shares.blocks - 1;
    Elements<V> g[kQuads];
    const auto stand_at = [&](int64_t unit, Elements<V>(&to)[kQuads]) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q)
        stand(a, unit * kUnit + (q * kThreads + threadIdx.x) * kQuad, &to[q]);
    };
    if constexpr (kSends) {
      stand_at(block, g);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) load_model_output(a, b, &g[q]);
    }
    const Place first_at = place_now(a, b);
    const uint32_t first_number = launch_number(a, b);
    const float scale = guidance_of(a, b);
    if (!moves(a, first_at, true)) {
      if (decides && threadIdx.x == 0) tell_graph(a, first_at);
      continue;
    }
    const auto load_all = [&](int64_t unit, Elements<V>(&to)[kQuads]) {
      stand_at(unit, to);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        load_model_output(a, b, &to[q]);
        load_run(now.rows, &to[q]);
      }
    };
    // The block's units are block, block + blocks, ...
    const int64_t units = (a.pieces + 1) / 2;
    const int32_t last = kLarge ? static_cast<int32_t>((units - 1 - block) / shares.blocks) : 0;
    const auto shelf = [&](int32_t k, int q) {
      const int32_t slot = k == last ? shares.shelves - 1 : k;
      return memory + (slot * arrays_of<V>(a.K) * kQuads + q) * kThreads + threadIdx.x;
    };
    const auto is_held = [&](int32_t k) { return k == last || k < shares.shelves - 1; };
    const Rows rows = rows_of<V>(a, first_at, true);
    if constexpr (kSends) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) load_run(rows, &g[q]);
    }
    // Whatever the last item left there has been read.
    __syncthreads();
    read_steps<V>(a, first_at, &steps);
    if (threadIdx.x == 0) {
      const int64_t candidates = most_candidates(a, first_at);
      now = {first_at,
             first_number,
             static_cast<int32_t>(candidates),
             kBegins ? 1 : static_cast<int32_t>(V::columns * candidates),
             scale,
             0,
             rows};
    }
    __syncthreads();
    const Place& at = now.at;
    if constexpr (kSends) {
#pragma unroll 1
      for (int32_t k = 0;; ++k) {
        const int64_t unit = block + static_cast<int64_t>(k) * shares.blocks;
        Elements<V> next[kQuads];
        if (kEarly && k < last) load_all(unit + shares.blocks, next);
        float defect[kQuads][1];
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          take_model_output(a, now.scale, &g[q]);
          if constexpr (kBegins) defect[q][0] = take_first_step(a, at, steps, &g[q]);
          if (is_held(k)) shelve(a, &g[q], shelf(k, q), kQuads * kThreads);
          if constexpr (!kBegins)
            gather(a, at, now.candidates, kLarge ? warp / kGroups : q, steps, g[q], sums[k % 2]);
        }
        // What these elements were has been used or put aside.
        if (kLarge && !kEarly && k < last) load_all(unit + shares.blocks, g);
        if constexpr (kBegins) {
#pragma unroll
          for (int q = 0; q < kQuads; ++q)
            leave_sums<1, 1>(defect[q], kLarge ? warp / kGroups : q, 0, sums[k % 2]);
        }
        __syncthreads();
        if (warp == 0)
          send_sums<kRunColumns<V>>(a, b, 2 * unit, 2, now.columns, now.number, sums[k % 2]);
        if (k == last) break;
        if constexpr (kEarly) {
#pragma unroll
          for (int q = 0; q < kQuads; ++q) g[q] = next[q];
          stand_at(unit + shares.blocks, g);
        }
      }
      agree<V, kThreads>(a, b, decides, &now, &deciding);
    } else if (warp == 0) {
      const Run run = decide_run(a, at, 0, false, false, &deciding);
      if (run.ends) settle(&now, run.length);
    }
    __syncthreads();
    const int64_t length = now.length;
#pragma unroll 1
    for (int32_t k = last; k >= 0; --k) {
      const int64_t unit = block + static_cast<int64_t>(k) * shares.blocks;
      if (kSends && is_held(k)) {
        stand_at(unit, g);
#pragma unroll
        for (int q = 0; q < kQuads; ++q) take_back(a, &g[q], shelf(k, q), kQuads * kThreads);
      } else {
        load_all(unit, g);
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          take_model_output(a, now.scale, &g[q]);
          if constexpr (kBegins) take_first_step(a, at, steps, &g[q]);
        }
      }
#pragma unroll
      for (int q = 0; q < kQuads; ++q) run(a, at, length, steps, &g[q]);
    }
    if (!kSends && arrive_last(&head_of(a, b)->arrived, shares.blocks) && warp == 0) {
      const Run run = decide_run(a, at, 0, false, true, &deciding);
      if (run.ends) save_run(a, run, now.number, deciding);
    }
  }
}

}  // namespace ak
