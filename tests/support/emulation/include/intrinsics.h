// What kernels call: barriers, warp calls, atomics, fences, cache hints, shared memory.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "scheduler.h"

#pragma GCC visibility push(hidden)

// Shared memory of the block, filled with 0xff at first: a float read before it is written is NaN.
// The address of a static is the declaration's name.
#define AK_SHARED(type, name)       \
  static char name##_declaration;   \
  type& name = *static_cast<type*>( \
      ::emulation::scheduler->shared(&name##_declaration, sizeof(type), alignof(type)))

// What the launch gives beside that: an array of as many as fit.
#define AK_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(::emulation::scheduler->dynamic_shared())

#define AK_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(AK_SITE) { emulation::scheduler->barrier({"__syncthreads", file, line}); }

inline void __syncwarp(unsigned mask = ~0u, AK_SITE) {
  emulation::scheduler->exchange(mask, 0, emulation::kBallot, {"__syncwarp", file, line});
}
inline unsigned __ballot_sync(unsigned mask, int value, AK_SITE) {
  return static_cast<unsigned>(emulation::scheduler->exchange(mask, value != 0, emulation::kBallot,
                                                              {"__ballot_sync", file, line}));
}
inline int __any_sync(unsigned mask, int value, AK_SITE) {
  return emulation::scheduler->exchange(mask, value != 0, emulation::kBallot,
                                        {"__any_sync", file, line}) != 0;
}

namespace emulation {

template <typename T, typename... Types>
constexpr bool is_one_of = (std::is_same_v<T, Types> || ...);

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
  static_assert(is_one_of<T, int, unsigned, long, unsigned long, long long, unsigned long long,
                          float, double>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = scheduler->exchange(mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A lane that asks past the end of its group of `width` lanes gets its own value.
inline unsigned within(unsigned source, unsigned lane, unsigned width) {
  return source < (lane / width + 1) * width ? source : lane;
}

template <typename T, typename Update>
T atomic(T* at, const Update& update) {
  scheduler->pause_before();
  const T old = *at, value = update(old);
  *at = value;
  if (value != old) scheduler->progress();
  scheduler->pause(1);
  return old;
}

}  // namespace emulation

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, AK_SITE) {
  const unsigned lane = emulation::scheduler->lane();
  return emulation::shuffle(mask, value, emulation::within(lane ^ lanes, lane, width),
                            {"__shfl_xor_sync", file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = warpSize, AK_SITE) {
  const unsigned lane = emulation::scheduler->lane();
  return emulation::shuffle(mask, value, emulation::within(lane + lanes, lane, width),
                            {"__shfl_down_sync", file, line});
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, AK_SITE) {
  const unsigned lane = emulation::scheduler->lane();
  return emulation::shuffle(mask, value, lane / width * width + (source & (width - 1)),
                            {"__shfl_sync", file, line});
}

// Pointers of the types CUDA has them for; uint64_t is not one (it is unsigned long here).
template <typename T>
T atomicAdd(T* at, std::common_type_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned, unsigned long long>);
  using Unsigned = std::make_unsigned_t<T>;  // wraps around
  return emulation::atomic(at, [=](T old) {
    return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value));
  });
}
template <typename T>
T atomicExch(T* at, std::common_type_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned, unsigned long long, float>);
  return emulation::atomic(at, [=](T) { return value; });
}
template <typename T>
T atomicOr(T* at, std::common_type_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned, unsigned long long>);
  return emulation::atomic(at, [=](T old) { return old | value; });
}
template <typename T>
T atomicMax(T* at, std::common_type_t<T> value) {
  static_assert(emulation::is_one_of<T, int, unsigned, long long, unsigned long long>);
  return emulation::atomic(at, [=](T old) { return std::max(old, value); });
}

inline int __ffs(int value) { return __builtin_ffs(value); }

// Stores that another block sees late, and not in the order in which they were made.
inline void store_relaxed(uint64_t* to, uint64_t word) { emulation::scheduler->post(to, word); }
inline uint64_t load_relaxed(const uint64_t* from) {
  emulation::scheduler->pause(emulation::kSleep);
  return emulation::scheduler->seen(from);
}
inline void load_relaxed(const uint64_t* from, uint64_t (&words)[2]) {
  emulation::scheduler->pause(emulation::kSleep);
  words[1] = emulation::scheduler->seen(from + 1);
  words[0] = emulation::scheduler->seen(from);
}
inline int32_t load_now(const int32_t* from) { return *from; }

inline void __threadfence() {
  emulation::scheduler->deliver_all();
  emulation::scheduler->pause(1);
}
inline void __threadfence_block() { emulation::scheduler->pause(1); }
inline void __nanosleep(unsigned) { emulation::scheduler->pause(emulation::kSleep); }

template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}
template <typename T>
void __stcg(T* at, std::common_type_t<T> value) {
  *at = value;
}
template <typename T>
void __stcs(T* at, std::common_type_t<T> value) {
  *at = value;
}

using cudaGraphConditionalHandle = unsigned long long;

inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  emulation::device().condition_handle = handle;
  emulation::device().condition_value = value;
  ++emulation::device().condition_calls;
}

#pragma GCC visibility pop
