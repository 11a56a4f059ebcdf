// A kernel's launch, and how much of one fits on the device at once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>

namespace ak {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
                   bool cooperative, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// What the current device has room for at once of a kernel.
struct Room {
  int64_t blocks;        // as the kernel is
  int64_t large_blocks;  // each with `shared_bytes` of shared memory on top; 0: not launched so
  int64_t shared_bytes;
  bool cooperative;  // whether blocks can be launched to run together
};

// Of one kernel, found once for a device: asking costs as much as a launch.
class Rooms {
 public:
  // `kept`: shared memory of a block that the kernel itself declares or the device keeps.
  template <typename... Parameters>
  Room of(void (*kernel)(Parameters...), int threads, int64_t kept) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return {};
    std::call_once(found_[device], [&] { rooms_[device] = find(kernel, threads, kept, device); });
    return rooms_[device];
  }

 private:
  template <typename... Parameters>
  static Room find(void (*kernel)(Parameters...), int threads, int64_t kept, int device) {
    int multiprocessors = 0, each = 0, cooperative = 0, shared = 0;
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0);
    Room room = {static_cast<int64_t>(multiprocessors) * each, 0, 0, cooperative != 0};
    if (cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
            cudaSuccess ||
        shared <= kept ||
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared - kept)) != cudaSuccess)
      return room;
    room.shared_bytes = shared - kept;
    each = 0;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads,
                                                  static_cast<size_t>(room.shared_bytes));
    room.large_blocks = static_cast<int64_t>(multiprocessors) * each;
    return room;
  }

  static constexpr int kDevices = 64;
  std::once_flag found_[kDevices];
  Room rooms_[kDevices] = {};
};

}  // namespace ak
