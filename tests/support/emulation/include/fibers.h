// One stack per CUDA thread, and the switch from one stack to another.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "types.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#pragma GCC visibility push(hidden)

namespace emulation {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // redzones make frames several times larger
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

// Each is two mappings of the 65530 Linux gives a process; the rest of it needs some too.
constexpr size_t kMostStacks = 16384;

// Stacks are kept from launch to launch: mapping one costs more than running a thread on it.
class Stacks {
 public:
  bool reserve(size_t count) {
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    if (count > kMostStacks) return false;
    while (stacks_.size() < count) {
      void* at = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
      if (at == MAP_FAILED) return false;
      stacks_.push_back(static_cast<char*>(at) + guard);
      if (mprotect(at, guard, PROT_NONE) != 0) return false;
    }
    return true;
  }

  char* operator[](size_t k) const { return stacks_[k]; }

  ~Stacks() {
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    for (char* stack : stacks_) munmap(stack - guard, guard + kStackBytes);
  }

 private:
  std::vector<char*> stacks_;
};

struct Fiber {
  char* stack = nullptr;  // its lowest byte; the host's is known, and needed, under ASan only
  size_t bytes = 0;
  void* fake_stack = nullptr;  // ASan's
#if defined(__x86_64__)
  void* top = nullptr;  // of the stack, while another fiber runs
#else
  ucontext_t context;
#endif
};

#if defined(__x86_64__)
// Saves the registers a call preserves on the caller's stack, the stack's top in *from (rdi), and
// goes on from `to` (rsi). ucontext would ask the kernel for the signal mask at every switch, and
// under ASan takes ten times as long again.
__attribute__((naked, noipa, no_stack_protector)) inline void swap_stacks(void** /*from*/,
                                                                          void* /*to*/) {
  asm(R"(pushq %rbp
         pushq %rbx
         pushq %r12
         pushq %r13
         pushq %r14
         pushq %r15
         movq %rsp, (%rdi)
         movq %rsi, %rsp
         popq %r15
         popq %r14
         popq %r13
         popq %r12
         popq %rbx
         popq %rbp
         ret)");
}
#endif

// `entry` must not return.
inline void prepare(Fiber* fiber, char* stack, void (*entry)()) {
  *fiber = {};
  fiber->stack = stack;
  fiber->bytes = kStackBytes;
#if defined(__x86_64__)
  // Six registers, the address to return to, and a null caller that ends a backtrace.
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(entry);
  fiber->top = top;
#else
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = stack;
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, entry, 0);
#endif
}

// Returns when something switches back to `from`; never, where `from` has finished.
inline void switch_fiber(Fiber* from, Fiber* to, [[maybe_unused]] bool finished) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(finished ? nullptr : &from->fake_stack, to->stack, to->bytes);
#endif
#if defined(__x86_64__)
  swap_stacks(&from->top, to->top);
#else
  swapcontext(&from->context, &to->context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

// The first thing on a new stack. A launch's first fiber comes from the host.
inline void begin_fiber([[maybe_unused]] Fiber* host) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (host->stack) return;
  host->stack = static_cast<char*>(const_cast<void*>(stack));
  host->bytes = bytes;
#endif
}

// Frames that never returned leave their redzones behind.
inline void abandon([[maybe_unused]] const Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, fiber.bytes);
#endif
}

}  // namespace emulation

#pragma GCC visibility pop
