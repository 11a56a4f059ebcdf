// The launch of `step`: which of its kernels, and on how many blocks.
#pragma once

#include "cuda/grid/launch.h"
#include "cuda/step_kernel.h"

namespace ak {

// A block for every `each` pieces of every sample. The rows of a grid are at most 65535.
inline dim3 grid_of_step(const Args& a, int64_t each) {
  constexpr int64_t kMostRows = 65535;
  const int64_t blocks = (a.pieces + each - 1) / each, rows = least(a.B, kMostRows);
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows),
              static_cast<unsigned>((a.B + rows - 1) / rows));
}

// False where the blocks of all samples cannot run at once, and in a loop inside a graph: before
// driver 12.6 and under MPS its body takes no cooperative launch, and `step` is the way out.
template <typename V>
bool launch_small_step(const Args& a, bool fresh, cudaStream_t stream, cudaError_t* error) {
  static Rooms rooms;
  const auto kernel = step_kernel<V, 1>;
  if (a.conditional || a.rule.batch_wide || a.rule.stages > 1 || a.pieces > kMostSinglePieces)
    return false;
  const Room room = rooms.of(kernel, kStepThreads, 0);
  if (!room.cooperative || a.B * a.pieces > room.blocks) return false;
  *error = launch(kernel, grid_of_step(a, 1), kStepThreads, 0, true, stream, a, fresh);
  return ran_together(error);
}

template <typename V>
cudaError_t launch_step_of(const Args& a, bool fresh, cudaStream_t stream) {
  // Without sums nobody waits for a message: the last to arrive decides.
  if constexpr (V::aligned && !V::noise && V::columns > 0) {
    cudaError_t error = cudaSuccess;
    if (launch_small_step<V>(a, fresh, stream, &error)) return error;
  }
  return launch(step_kernel<V, 2>, grid_of_step(a, 2), kStepThreads, 0, false, stream, a, fresh);
}

inline cudaError_t launch_step(const Args& a, bool fresh, cudaStream_t stream) {
  return with_rule(a, [&](auto summed, auto filled) {
    constexpr Summed kSum = decltype(summed)::value;
    constexpr bool kFilled = decltype(filled)::value;
    if (!is_regular(a))
      return launch_step_of<Variant<void, kSum, kFilled, true, true>>(a, fresh, stream);
    return with_network(a, [&](auto network) {
      using T = typename decltype(network)::type;
      if constexpr (!kSeldom<kSum, kFilled>) {
        if (!may_add_noise(a) && a.K == 1)
          return launch_step_of<Variant<T, kSum, kFilled, false, false>>(a, fresh, stream);
        if (!may_add_noise(a))
          return launch_step_of<Variant<T, kSum, kFilled, true, false>>(a, fresh, stream);
      }
      return launch_step_of<Variant<T, kSum, kFilled, true, true>>(a, fresh, stream);
    });
  });
}

}  // namespace ak
