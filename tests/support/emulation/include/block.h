// A block under way: its threads, what they wait for, its shared memory.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fibers.h"
#include "types.h"

#pragma GCC visibility push(hidden)

namespace emulation {

// Where a thread waits.
struct Site {
  const char* what;
  const char* file;
  int line;
};

enum State { kRunning, kWaiting, kExited };

struct Block;

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  uint3 index = {};
  unsigned warp = 0, lane = 0;
  State state = kRunning;
  Site site = {};
  uint64_t value = 0;   // given to a warp call, then received from it
  unsigned source = 0;  // the lane it asks for
  int64_t epoch = 0;    // the last progress seen when `idle` was counted
  int idle = 0;
  int delay = 0;  // how often the random order still passes it over
};

// A warp call that some of its lanes have reached.
struct WarpCall {
  unsigned mask, arrived;
  int line;
};

using Storage = std::unique_ptr<void, void (*)(void*)>;

struct Block {
  uint3 index = {};
  size_t running = 0, live = 0, at_barrier = 0;
  int barrier_line = 0;
  std::vector<Thread> threads;
  std::vector<std::vector<WarpCall>> calls;  // per warp
  std::vector<std::pair<const void*, Storage>> shared;
  size_t shared_bytes = 0;
};

inline uint3 index_at(dim3 extent, size_t k) {
  const size_t row = k / extent.x;
  return {static_cast<unsigned>(k % extent.x), static_cast<unsigned>(row % extent.y),
          static_cast<unsigned>(row / extent.y)};
}

inline std::string place(const Thread& thread) {
  if (thread.state == kRunning) return "running";
  if (thread.state == kExited) return "exited";
  const Site& site = thread.site;
  return std::string("at ") + site.what + " (" + site.file + ":" + std::to_string(site.line) + ")";
}

// For a report: the block, and how many of its threads are where.
inline std::string described(const Block& block) {
  std::map<std::string, int> places;
  for (const Thread& thread : block.threads) ++places[place(thread)];
  const uint3& at = block.index;
  std::string text = "block " + std::to_string(at.x) + "," + std::to_string(at.y) + "," +
                     std::to_string(at.z) + ":";
  for (const auto& [place, count] : places) text += " " + std::to_string(count) + " " + place;
  return text;
}

}  // namespace emulation

#pragma GCC visibility pop
