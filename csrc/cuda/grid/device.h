// What a GPU does that C++ has no word for: shared memory, stores and loads that other blocks see,
// loads that stay where they stand. The emulation of a GPU in the tests supplies its own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if !defined(AK_SHARED)
#define AK_SHARED(type, name) __shared__ type name
#define AK_DYNAMIC_SHARED(type, name)                    \
  extern __shared__ __align__(16) char dynamic_memory[]; \
  type* name = reinterpret_cast<type*>(dynamic_memory)

// Eight bytes at once: who reads them has all of them or what was there before. In no order with
// other stores.
__device__ __forceinline__ void store_relaxed(uint64_t* to, uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

__device__ __forceinline__ uint64_t load_relaxed(const uint64_t* from) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}

// Two words beside each other, each of them whole; `from` on a 16-byte boundary.
__device__ __forceinline__ void load_relaxed(const uint64_t* from, uint64_t (&words)[2]) {
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(words[0]), "=l"(words[1])
               : "l"(from)
               : "memory");
}

// A load that the compiler leaves where it stands: several of them are on their way together.
__device__ __forceinline__ int32_t load_now(const int32_t* from) {
  int32_t value;
  asm volatile("ld.volatile.global.s32 %0, [%1];" : "=r"(value) : "l"(from));
  return value;
}

#endif
