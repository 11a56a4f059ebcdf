// A kernel's launch, and how much of one fits on the device at once.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

namespace ak {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, bool cooperative,
                   cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Blocks of a kernel that run at once on a device, remembered: asking costs as much as a launch.
class Residency {
 public:
  template <typename... Parameters>
  int64_t blocks(void (*kernel)(Parameters...), int threads) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return 0;
    int64_t known = known_[device].load();
    if (known == 0) {
      int multiprocessors = 0, each = 0;
      if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) !=
              cudaSuccess ||
          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0) != cudaSuccess)
        return 0;
      known = static_cast<int64_t>(multiprocessors) * each;
      known_[device].store(known);
    }
    return known;
  }

  // 0 where blocks cannot be launched to run at once.
  template <typename... Parameters>
  int64_t cooperative_blocks(void (*kernel)(Parameters...), int threads) {
    int device = 0, cooperative = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device) != cudaSuccess)
      return 0;
    return cooperative ? blocks(kernel, threads) : 0;
  }

 private:
  static constexpr int kDevices = 64;
  std::atomic<int64_t> known_[kDevices] = {};
};

}  // namespace ak
