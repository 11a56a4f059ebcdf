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
  int64_t blocks;        // as the kernel is; 0: nothing could be found out
  int64_t large_blocks;  // each with `shared_bytes` of shared memory on top; 0: not launched so
  int64_t shared_bytes;
  bool cooperative;  // whether blocks can be launched to run together
};

// Of one kernel, found once for a device: asking costs as much as a launch.
class Rooms {
 public:
  // `large`: whether its blocks are to take as much shared memory as they can.
  template <typename... Parameters>
  Room of(void (*kernel)(Parameters...), int threads, bool large) {
    int device = 0;
    if (!done(cudaGetDevice(&device)) || device >= kDevices) return {};
    const std::lock_guard<std::mutex> guard(mutex_);
    if (rooms_[device].blocks == 0) rooms_[device] = find(kernel, threads, large, device);
    return rooms_[device];
  }

 private:
  // A failure that has been dealt with is not left behind for the next caller of CUDA to find.
  static bool done(cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();
    return error == cudaSuccess;
  }

  template <typename... Parameters>
  static Room find(void (*kernel)(Parameters...), int threads, bool large, int device) {
    int multiprocessors = 0, each = 0, cooperative = 0, most = 0;
    if (!done(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) ||
        !done(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device)) ||
        !done(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0)))
      return {};
    Room room = {static_cast<int64_t>(multiprocessors) * each, 0, 0, cooperative != 0};
    cudaFuncAttributes own = {};
    if (!large ||
        !done(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) ||
        !done(cudaFuncGetAttributes(&own, kernel)) || most <= static_cast<int>(own.sharedSizeBytes))
      return room;
    const int bytes = most - static_cast<int>(own.sharedSizeBytes);
    if (!done(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) ||
        !done(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads,
                                                            static_cast<size_t>(bytes))))
      return room;
    room.shared_bytes = bytes;
    room.large_blocks = static_cast<int64_t>(multiprocessors) * each;
    return room;
  }

  static constexpr int kDevices = 64;
  std::mutex mutex_;
  Room rooms_[kDevices] = {};
};

}  // namespace ak
