// A kernel's launch, and how much of one fits on the device at once.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <mutex>

namespace ak {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared_bytes,
                   bool cooperative, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Whether a cooperative launch was one. Part of a device may be all that this process is given:
// then its blocks do not run at once, and nothing has been launched.
inline bool ran_together(cudaError_t* error) {
  if (*error != cudaErrorCooperativeLaunchTooLarge && *error != cudaErrorNotSupported) return true;
  cudaGetLastError();
  *error = cudaSuccess;
  return false;
}

// What the current device has room for at once of a kernel.
struct Room {
  int64_t blocks;        // as the kernel is; 0: nothing could be found out
  int64_t shared_bytes;  // that each of them may have of shared memory on top
  bool cooperative;      // whether blocks can be launched to run together
};

// Of one kernel, found once for a device: asking costs as much as a launch.
class Rooms {
 public:
  // `shared`: bytes of shared memory that each of its blocks wants at least beside its own; they
  // then get as much as there is, and fewer of them run at once where it is not enough.
  template <typename... Parameters>
  Room of(void (*kernel)(Parameters...), int threads, int64_t shared) {
    int device = 0;
    if (!done(cudaGetDevice(&device)) || device >= kDevices) return {};
    const std::lock_guard<std::mutex> guard(mutex_);
    if (rooms_[device].blocks == 0) rooms_[device] = find(kernel, threads, shared, device);
    return rooms_[device];
  }

 private:
  // A failure that has been dealt with is not left behind for the next caller of CUDA to find.
  static bool done(cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();
    return error == cudaSuccess;
  }

  template <typename... Parameters>
  static Room find(void (*kernel)(Parameters...), int threads, int64_t shared, int device) {
    int multiprocessors = 0, each = 0, cooperative = 0;
    if (!done(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) ||
        !done(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device)) ||
        !done(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0)))
      return {};
    int64_t bytes = 0;
    for (; shared > 0 && each > 0; --each) {
      bytes = find_shared(kernel, threads, each, device);
      if (bytes >= shared) break;
    }
    return {static_cast<int64_t>(multiprocessors) * each, bytes, cooperative != 0};
  }

  // What is left of a multiprocessor's shared memory for each of its blocks.
  template <typename... Parameters>
  static int64_t find_shared(void (*kernel)(Parameters...), int threads, int blocks, int device) {
    int all = 0, reserved = 0, most = 0, still = 0;
    cudaFuncAttributes own = {};
    if (!done(cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)) ||
        !done(cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device)) ||
        !done(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) ||
        !done(cudaFuncGetAttributes(&own, kernel)))
      return 0;
    const int share = static_cast<int>(std::min(all / blocks - reserved, most));
    const int bytes = (share - static_cast<int>(own.sharedSizeBytes)) / 1024 * 1024;
    if (bytes <= 0 ||
        !done(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) ||
        !done(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&still, kernel, threads,
                                                            static_cast<size_t>(bytes))))
      return 0;
    return still < blocks ? 0 : bytes;
  }

  static constexpr int kDevices = 64;
  std::mutex mutex_;
  Room rooms_[kDevices] = {};
};

}  // namespace ak
