// The launch of `advance`: one of its kernels, or `step` repeated.
#pragma once

#include "cuda/advance_kernel.h"
#include "cuda/step_launch.h"

namespace ak {

// A block of many threads has one quad in each, and any number of units; one of few has two quads
// and a single unit.
constexpr int kManyThreads = 512, kFewThreads = 256;
// How many of them share a multiprocessor's registers.
template <typename V>
constexpr int kManyBlocks = V::history || V::noise ? 1 : 2;
template <typename V>
constexpr int kFewBlocks = V::filled ? 3 : 4;

inline int64_t units_of(const Args& a) { return (a.pieces + 1) / 2; }

// Blocks of all samples, at most `room` at a time.
inline dim3 grid_of_advance(const Shares& shares, int64_t room) {
  return dim3(static_cast<unsigned>(least(shares.items, room)));
}

inline Shares share_out(const Args& a, int64_t blocks, int64_t shelves) {
  return {static_cast<uint32_t>(a.B * blocks), static_cast<uint32_t>(blocks),
          static_cast<int32_t>(shelves)};
}

// What a block keeps of a unit, with a history of K terms.
template <typename V>
constexpr int64_t shelf_bytes(int64_t K) {
  return arrays_of<V>(K) * kUnit * static_cast<int64_t>(sizeof(float));
}
template <typename V>
constexpr int64_t kMostShelf = shelf_bytes<V>(kRunHistory + 1);

template <typename V>
cudaError_t launch_sumless_advance(const Args& a, cudaStream_t stream) {
  static Rooms rooms;
  const auto kernel = advance_kernel<V, kManyThreads, kManyBlocks<V>>;
  const int64_t wanted = 2 * rooms.of(kernel, kManyThreads, 0).blocks / a.B;
  const Shares shares = share_out(a, least(units_of(a), wanted > 1 ? wanted : 1), 0);
  return launch(kernel, dim3(shares.items), kManyThreads, 0, false, stream, a, shares);
}

// More samples than the other kernel holds at once, each of which this one holds.
template <typename V>
bool launch_many_samples(const Args& a, int64_t room_of_other, cudaStream_t stream,
                         cudaError_t* error) {
  static Rooms rooms;
  const auto kernel = advance_kernel<V, kFewThreads, kFewBlocks<V>>;
  const int64_t units = units_of(a);
  if (a.B * units <= room_of_other) return false;
  const Room room = rooms.of(kernel, kFewThreads, kMostShelf<V>);
  if (!room.cooperative || units > room.blocks) return false;
  const int64_t shelf = shelf_bytes<V>(a.K);
  const Shares shares = share_out(a, units, 1);
  *error = launch(kernel, grid_of_advance(shares, room.blocks), kFewThreads, shelf, true, stream, a,
                  shares);
  return ran_together(error);
}

// False where blocks cannot be launched to run at once.
template <typename V>
bool launch_advance_together(const Args& a, cudaStream_t stream, cudaError_t* error) {
  static Rooms rooms;
  const auto kernel = advance_kernel<V, kManyThreads, kManyBlocks<V>>;
  const Room room = rooms.of(kernel, kManyThreads, kMostShelf<V>);
  const int64_t shelf = shelf_bytes<V>(a.K);
  if (!room.cooperative || room.blocks == 0) return false;
  if constexpr (!V::history && !V::noise)
    if (launch_many_samples<V>(a, room.blocks, stream, error)) return true;
  const int64_t units = units_of(a), blocks = least(units, room.blocks);
  const int64_t held = least((units + blocks - 1) / blocks, room.shared_bytes / shelf);
  const Shares shares = share_out(a, blocks, held);
  *error = launch(kernel, grid_of_advance(shares, room.blocks), kManyThreads, held * shelf, true,
                  stream, a, shares);
  return ran_together(error);
}

// What the registers of a run hold: rows moved 16 bytes at a time, one decision per sample, steps
// that are whole steps where differences decide, a short history, and sums of all steps that a run
// may have.
inline bool fits_one_launch(const Args& a) {
  const int64_t longest = longest_run(a.rule, a.T);
  if (!is_regular(a) || a.rule.batch_wide || a.K > kRunHistory + 1 || longest == 1) return false;
  if (a.B * units_of(a) >= int64_t{1} << 31) return false;
  return !needs_first(a.rule.criterion) || (a.rule.stages == 1 && longest <= kMostCandidates);
}

inline bool launch_run(const Args& a, cudaStream_t stream, cudaError_t* error) {
  return with_rule(a, [&](auto summed, auto filled) {
    return with_network(a, [&](auto network) {
      constexpr Summed kSum = decltype(summed)::value;
      constexpr bool kFilled = decltype(filled)::value;
      using T = typename decltype(network)::type;
      const auto launch_of = [&](auto more) {
        using V = Variant<T, kSum, kFilled, decltype(more)::value, decltype(more)::value>;
        if constexpr (V::columns > 0) return launch_advance_together<V>(a, stream, error);
        *error = launch_sumless_advance<V>(a, stream);
        return true;
      };
      if constexpr (!kSeldom<kSum, kFilled>)
        if (a.K == 1 && !may_add_noise(a)) return launch_of(std::false_type());
      return launch_of(std::true_type());
    });
  });
}

// One launch where it can be done so, else `step` repeated.
inline cudaError_t launch_advance(const Args& a, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (fits_one_launch(a) && launch_run(a, stream, &error)) return error;
  const int64_t longest = longest_run(a.rule, a.T);
  for (int64_t k = 0; k < longest && error == cudaSuccess; ++k)
    error = launch_step(a, k == 0, stream);
  return error;
}

}  // namespace ak
