// Runs the threads of a launch, one at a time, each on its own stack.
//
// A thread runs until a switching point: a barrier, a warp call, an atomic, a fence, a sleep, a
// relaxed load.
// Memory is sequentially consistent in between, but for relaxed stores: those are under way for a
// while, and arrive out of order, unless a fence of their block is between.
#pragma once

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "block.h"
#include "device.h"
#include "fibers.h"

#pragma GCC visibility push(hidden)

namespace emulation {

constexpr unsigned kBallot = 32;  // the source of a call that asks every lane
constexpr int kSleep = 100;  // a sleep tells more of waiting than an atomic that changes nothing
constexpr int kPatience = 2000 * kSleep;
constexpr size_t kSharedBytes = 48 << 10;  // ptxas refuses more

class Scheduler;
inline Scheduler* scheduler = nullptr;  // of the launch under way
inline Stacks stacks;

class Scheduler {
 public:
  // `resident` of the grid's blocks at a time; a finished one makes room for the next.
  Scheduler(dim3 grid, dim3 block, size_t resident, size_t dynamic_bytes,
            const std::function<void()>& kernel)
      : kernel_(kernel),
        grid_(grid),
        extent_(block),
        dynamic_bytes_(dynamic_bytes),
        random_(device().order == kRandom) {
    const size_t blocks = static_cast<size_t>(grid.x) * grid.y * grid.z;
    const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
    for (size_t k = 0; k < blocks; ++k)
      pending_.push_back(device().order == kReversed ? blocks - 1 - k : k);
    for (size_t k = 1; random_ && k < blocks; ++k)
      std::swap(pending_[k], pending_[draw_below(k + 1)]);
    blocks_.resize(std::min(blocks, resident));
    for (Block& b : blocks_) b.threads.resize(threads);
    // How readily a thread stays at an atomic, a fence or a sleep: from one in eight to six.
    keep_ = 1 + (random_ ? draw_below(6) : 0);
  }

  // False where the launch failed; device().last_failure then says why.
  bool run() {
    const size_t threads = blocks_.size() * blocks_[0].threads.size();
    if (!stacks.reserve(threads)) {
      device().last_failure = "no stacks for " + std::to_string(threads) + " threads at a time, " +
                              std::to_string(kMostStacks) + " at most";
      return false;
    }
    gridDim = grid_;
    blockDim = extent_;
    scheduler = this;
    size_t unfinished = pending_.size();
    for (Block& block : blocks_) start(&block);
    while (unfinished > 0) {
      resume(&host_, take(), false);  // comes back when a block has finished or a thread failed
      if (reason_) break;
      --unfinished;
      ended_->shared.clear();
      if (!pending_.empty()) start(ended_);
    }
    deliver_of(nullptr);
    scheduler = nullptr;
    if (reason_) report();
    return !reason_;
  }

  // __syncthreads: every thread of the block, exited ones too.
  void barrier(Site site) {
    Thread* self = running_;
    Block* block = self->block;
    arrive(self, site);
    if (block->at_barrier > 0 && block->barrier_line != site.line)
      fail("threads of a block wait at different barriers", block);
    block->barrier_line = site.line;
    if (++block->at_barrier < block->threads.size()) return wait(self);
    block->at_barrier = 0;
    release(block, 0, block->threads.size(), ~0u);
    next(self);
  }

  // Returns the value lane `source` gave, or for kBallot the lanes that gave something else than 0.
  uint64_t exchange(unsigned mask, uint64_t value, unsigned source, Site site) {
    Thread* self = running_;
    Block* block = self->block;
    std::vector<WarpCall>& calls = block->calls[self->warp];
    arrive(self, site);
    self->value = value;
    self->source = source;
    if (!(mask >> self->lane & 1u)) fail("a lane's mask does not name the lane itself", block);
    size_t k = 0;
    while (k < calls.size() && (calls[k].mask != mask || calls[k].line != site.line)) ++k;
    if (k == calls.size()) calls.push_back({mask, 0u, site.line});
    calls[k].arrived |= 1u << self->lane;
    if (calls[k].arrived == mask) {
      calls[k] = calls.back();
      calls.pop_back();
      complete(block, self->warp, mask);
      next(self);
    } else {
      wait(self);
    }
    return self->value;
  }

  // A switching point that waits for nothing. `idle` weighs it as a sign of waiting all the same.
  void pause(int idle) {
    Thread* self = running_;
    if (self->epoch != epoch_) self->idle = 0;
    self->epoch = epoch_;
    const bool was_tired = self->idle >= kPatience;
    self->idle += idle;
    if (!was_tired && self->idle >= kPatience && ++tired_ > ready_.size())
      fail("deadlock: every thread that runs only waits", nullptr);
    if (random_ && draw_below(8) < keep_) return;
    // Now and then a thread stands still while the others go a long way.
    if (random_ && draw_below(4) == 0) self->delay = 1 << draw_below(10);
    ready_.push_back(self);
    next(self);
  }

  void pause_before() {
    if (random_) pause(0);
  }

  // A store that other blocks do not see yet. At random, any of those under way comes next; else
  // the oldest.
  void post(uint64_t* to, uint64_t word) { posted_.push_back({to, word, running_->block}); }

  // What a thread reads: its block's own stores are there for it.
  uint64_t seen(const uint64_t* from) {
    if (!posted_.empty() && (!random_ || draw_below(4) == 0))
      deliver(random_ ? draw_below(posted_.size()) : 0);
    uint64_t word = *from;
    for (const Posted& one : posted_)
      if (one.to == from && one.block == running_->block) word = one.word;
    return word;
  }

  // A fence: all that the block has stored before.
  void deliver_all() { deliver_of(running_->block); }

  void progress() {
    ++epoch_;
    tired_ = 0;
  }

  // Storage for one declaration of shared memory in the running thread's block. Each has its own
  // allocation, so that ASan sees past its end.
  void* shared(const void* declaration, size_t bytes, size_t alignment, bool counted = true) {
    Block* block = running_->block;
    for (const auto& [key, storage] : block->shared)
      if (key == declaration) return storage.get();
    if (counted) block->shared_bytes += bytes;
    if (block->shared_bytes > kSharedBytes)
      fail("a block declares more than 48 KiB of shared memory", block);
    void* at = nullptr;
    if (posix_memalign(&at, std::max<size_t>(alignment, 16), bytes) != 0) std::abort();
    std::memset(at, 0xff, bytes);
    block->shared.emplace_back(declaration, Storage(at, std::free));
    return at;
  }

  // What the launch asked for beside the declarations.
  void* dynamic_shared() { return shared(this, dynamic_bytes_, 16, false); }

  unsigned lane() const { return running_->lane; }

 private:
  static void enter() {
    begin_fiber(&scheduler->host_);
    scheduler->kernel_();
    scheduler->finish();
  }

  struct Posted {
    uint64_t* to;
    uint64_t word;
    const Block* block;
  };

  // Those of one place arrive in their order.
  void deliver(size_t k) {
    for (size_t i = 0; i < k; ++i)
      if (posted_[i].to == posted_[k].to) k = i;
    *posted_[k].to = posted_[k].word;
    posted_.erase(posted_.begin() + static_cast<std::ptrdiff_t>(k));
    progress();
  }

  void deliver_of(const Block* block) {
    for (size_t k = 0; k < posted_.size();)
      if (!block || posted_[k].block == block)
        deliver(k), k = 0;
      else
        ++k;
  }

  void start(Block* block) {
    const size_t n = block->threads.size(), first = (block - blocks_.data()) * n;
    block->index = index_at(grid_, pending_.front());
    pending_.pop_front();
    block->live = n;
    block->running = block->at_barrier = block->shared_bytes = 0;
    block->calls.assign((n + 31) / 32, {});
    for (size_t k = 0; k < n; ++k) {
      Thread* thread = &block->threads[k];
      *thread = Thread();
      thread->block = block;
      thread->index = index_at(extent_, k);
      thread->warp = static_cast<unsigned>(k / 32);
      thread->lane = static_cast<unsigned>(k % 32);
      prepare(&thread->fiber, stacks[first + k], enter);
    }
    release(block, 0, n, ~0u);
  }

  void arrive(Thread* self, Site site) {
    self->state = kWaiting;
    self->site = site;
    --self->block->running;
    progress();
  }

  void release(Block* block, size_t begin, size_t end, unsigned lanes) {
    for (size_t i = begin; i < end; ++i) {
      Thread* thread = &block->threads[device().order == kReversed ? begin + end - 1 - i : i];
      if (!(lanes >> thread->lane & 1u)) continue;
      thread->state = kRunning;
      ++block->running;
      ready_.push_back(thread);
    }
  }

  void complete(Block* block, unsigned warp, unsigned mask) {
    Thread* lanes = &block->threads[32 * warp];
    uint64_t values[32];
    unsigned ballot = 0;
    for (unsigned i = 0; i < 32; ++i) {
      // What a lane gives that the mask does not name is undefined.
      const bool named = mask >> i & 1u;
      values[i] = named ? lanes[i].value : ~uint64_t{0};
      if (named && lanes[i].value != 0) ballot |= 1u << i;
    }
    for (unsigned i = 0; i < 32; ++i)
      if (mask >> i & 1u)
        lanes[i].value = lanes[i].source == kBallot ? ballot : values[lanes[i].source];
    release(block, 32 * warp, std::min<size_t>(32 * warp + 32, block->threads.size()), mask);
  }

  // Only threads of its own block can release a waiting thread.
  void wait(Thread* self) {
    if (self->block->running == 0) fail("a block waits for threads that never come", self->block);
    next(self);
  }

  void finish() {
    Thread* self = running_;
    Block* block = self->block;
    self->state = kExited;
    --block->running;
    progress();
    if (--block->live == 0) {
      ended_ = block;
      return switch_fiber(&self->fiber, &host_, true);
    }
    if (block->running == 0) fail("a block waits for threads that never come", block);
    resume(&self->fiber, take(), true);
  }

  Thread* take() {
    if (random_) {
      size_t k = draw_below(ready_.size());
      while (ready_[k]->delay > 0) {
        --ready_[k]->delay;
        k = draw_below(ready_.size());
      }
      std::swap(ready_[k], ready_.front());
    }
    Thread* thread = ready_.front();
    ready_.pop_front();
    return thread;
  }

  void next(Thread* self) {
    Thread* thread = take();
    if (thread != self) resume(&self->fiber, thread, false);
  }

  void resume(Fiber* from, Thread* thread, bool finished) {
    running_ = thread;
    threadIdx = thread->index;
    blockIdx = thread->block->index;
    ++device().switches;
    switch_fiber(from, &thread->fiber, finished);
  }

  // Back to the host for good: the stacks of all threads are given up as they are, so nothing on
  // them may own memory.
  void fail(const char* reason, const Block* block) {
    reason_ = reason;
    blamed_ = block;
    switch_fiber(&running_->fiber, &host_, false);
  }

  void report() {
    std::string text = reason_;
    for (const Block& block : blocks_) {
      for (const Thread& thread : block.threads) abandon(thread.fiber);
      if (block.live == 0 || (blamed_ && blamed_ != &block)) continue;
      text += "; " + described(block);
    }
    if (!pending_.empty()) text += "; not started: " + std::to_string(pending_.size()) + " blocks";
    device().last_failure = text;
  }

  const std::function<void()>& kernel_;
  const dim3 grid_, extent_;
  size_t dynamic_bytes_ = 0;
  const bool random_;
  size_t keep_ = 0;
  Fiber host_;
  std::vector<Block> blocks_;   // the resident ones
  std::deque<size_t> pending_;  // those to come
  std::deque<Thread*> ready_;   // without the one that runs
  std::vector<Posted> posted_;  // stores under way
  Thread* running_ = nullptr;
  Block* ended_ = nullptr;
  // Deadlock: all that could run have been idle for long since the last progress.
  int64_t epoch_ = 1;
  size_t tired_ = 0;
  const char* reason_ = nullptr;
  const Block* blamed_ = nullptr;
};

}  // namespace emulation

#pragma GCC visibility pop
