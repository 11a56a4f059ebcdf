// What the emulated device is like, which order its threads run in, and what it has counted.
#pragma once

#include <cstdint>
#include <string>

#include "types.h"

#pragma GCC visibility push(hidden)

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotSupported = 801,
};

namespace emulation {

// In order and reversed, threads take turns from switching point to switching point, and blocks
// start in that order. At random, any thread of any resident block is next; at an atomic, a fence
// or a sleep it may also stay, or stand still for long.
enum Order { kInOrder, kReversed, kRandom };

struct Device {
  int ordinal = 0;  // what a program may remember facts of a device by
  int multiprocessors = 4;
  int blocks_per_multiprocessor = 2;
  bool cooperative = true;
  int shared_memory = 227 << 10;  // of a multiprocessor, and the most a block may be allowed
  Order order = kInOrder;
  // Of the random order. Every draw moves it on, so that setting it repeats the launches that
  // followed, and two launches in a row run differently.
  uint64_t seed = 0;

  int64_t launches = 0;
  int64_t cooperative_launches = 0;
  int64_t switches = 0;  // from one thread to another
  unsigned long long condition_handle = 0;
  unsigned condition_value = 0;
  int64_t condition_calls = 0;
  cudaError_t last_error = cudaSuccess;
  std::string last_failure;  // why the last failed launch failed

  int64_t resident_blocks() const {
    return static_cast<int64_t>(multiprocessors) * blocks_per_multiprocessor;
  }
};

inline Device& device() {
  static Device device;
  return device;
}

// splitmix64
inline uint64_t draw() {
  uint64_t z = device().seed += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Below n < 2^32; uneven by less than n / 2^32.
inline size_t draw_below(size_t n) { return static_cast<size_t>((draw() >> 32) * n >> 32); }

}  // namespace emulation

#pragma GCC visibility pop
