// The CUDA kernels and their launches as ops of CPU tensors, run by the emulation beside this file.
// Everything of csrc/cuda/step.cu is here but the device guard, the stream and the check of
// devices.
#include <cuda_runtime.h>

#include <map>
#include <tuple>

#include "cuda/advance_launch.h"
#include "op/registration.h"

namespace ak {
namespace {

template <typename Launch>
void emulate(const Tensors& t, const Rule& rule, const Condition& condition, Launch launch) {
  STD_TORCH_CHECK(t.workspace, "workspace must be given on a GPU");
  const Args a = check(t, rule, condition);
  if (a.B == 0) return;
  const cudaError_t error = launch(a);
  STD_TORCH_CHECK(error == cudaSuccess, "did not launch: ", cudaGetErrorString(error), "; ",
                  emulation::device().last_failure);
}

void emulated_step(const Tensors& t, const Rule& rule, const Condition& condition, bool fresh) {
  emulate(t, rule, condition, [&](const Args& a) { return launch_step(a, fresh, nullptr); });
}

void emulated_advance(const Tensors& t, const Rule& rule, const Condition& condition) {
  emulate(t, rule, condition, [](const Args& a) { return launch_advance(a, nullptr); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaptive_kernels_emulated, CPU, m) {
  m.impl("step", TORCH_BOX(&step<emulated_step>));
  m.impl("advance", TORCH_BOX(&advance<emulated_advance>));
}

}  // namespace ak

extern "C" __attribute__((visibility("default"))) void emulation_set(int multiprocessors,
                                                                     int blocks, int shared_memory,
                                                                     int cooperative, int order,
                                                                     uint64_t seed) {
  // The launches remember what they found out about a device.
  static std::map<std::tuple<int, int, int, int>, int> devices;
  emulation::Device& device = emulation::device();
  const auto next = static_cast<int>(devices.size());
  device.ordinal =
      devices.emplace(std::tuple(multiprocessors, blocks, shared_memory, cooperative), next)
          .first->second;
  device.multiprocessors = multiprocessors;
  device.blocks_per_multiprocessor = blocks;
  device.shared_memory = shared_memory;
  device.cooperative = cooperative != 0;
  device.order = static_cast<emulation::Order>(order);
  device.seed = seed;
  device.launches = device.cooperative_launches = device.condition_calls = 0;
}

// Of launches since emulation_set: launches, cooperative ones, calls that set a condition, the
// handle and the value of the last; the error left behind.
extern "C" __attribute__((visibility("default"))) void emulation_get(int64_t* into) {
  const emulation::Device& device = emulation::device();
  into[0] = device.launches;
  into[1] = device.cooperative_launches;
  into[2] = device.condition_calls;
  into[3] = static_cast<int64_t>(device.condition_handle);
  into[4] = device.condition_value;
  into[5] = cudaGetLastError();
}
