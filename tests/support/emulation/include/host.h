// What the host calls: launches, errors, properties of the device.
#pragma once

#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "scheduler.h"

#pragma GCC visibility push(hidden)

using cudaStream_t = struct CUstream_st*;

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
union cudaLaunchAttributeValue {
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrReservedSharedMemoryPerBlock = 111
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace emulation {

inline bool is_cooperative(const cudaLaunchConfig_t& config) {
  bool cooperative = false;
  for (unsigned k = 0; k < config.numAttrs; ++k)
    if (config.attrs[k].id == cudaLaunchAttributeCooperative)
      cooperative = config.attrs[k].val.cooperative != 0;
  return cooperative;
}

// The limits of every device since Kepler.
inline bool is_valid(const cudaLaunchConfig_t& config) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool empty = threads == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0;
  return !empty && block.x <= 1024 && block.y <= 1024 && block.z <= 64 && threads <= 1024 &&
         grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
}

constexpr int kOwnShared = 4 << 10, kReserved = 1 << 10;

// Dynamic shared memory that a kernel was allowed on a device, where that is more than 48 KiB.
inline std::map<std::pair<int, const void*>, size_t>& allowed() {
  static std::map<std::pair<int, const void*>, size_t> bytes;
  return bytes;
}

inline bool is_allowed(const cudaLaunchConfig_t& config, const void* kernel) {
  const auto found = allowed().find({device().ordinal, kernel});
  const size_t most = found == allowed().end() ? kSharedBytes : found->second;
  return config.dynamicSmemBytes <= most;
}

inline cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  if (!is_valid(config)) return cudaErrorInvalidConfiguration;
  const bool cooperative = is_cooperative(config);
  const uint64_t blocks = uint64_t{config.gridDim.x} * config.gridDim.y * config.gridDim.z;
  const uint64_t resident = static_cast<uint64_t>(device().resident_blocks());
  if (cooperative && !device().cooperative) return cudaErrorNotSupported;
  if (cooperative && blocks > resident) return cudaErrorCooperativeLaunchTooLarge;
  ++device().launches;
  device().cooperative_launches += cooperative;
  Scheduler launched(config.gridDim, config.blockDim, resident, config.dynamicSmemBytes, kernel);
  return launched.run() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace emulation

// Returns when the kernel has run; on a device a failure would show at a later call.
template <typename... Expected, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... args) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  const std::tuple<Expected...> values(std::forward<Actual>(args)...);
  cudaError_t error = cudaErrorInvalidConfiguration;
  if (emulation::is_allowed(*config, reinterpret_cast<const void*>(kernel)))
    error = emulation::launch(*config, [&] { std::apply(kernel, values); });
  if (error != cudaSuccess) emulation::device().last_error = error;
  return error;
}

inline cudaError_t cudaGetLastError() {
  return std::exchange(emulation::device().last_error, cudaSuccess);
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return emulation::device().last_failure.c_str();
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = emulation::device().ordinal;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulation::Device& device = emulation::device();
  *value = attribute == cudaDevAttrMultiProcessorCount            ? device.multiprocessors
           : attribute == cudaDevAttrCooperativeLaunch            ? device.cooperative
           : attribute == cudaDevAttrReservedSharedMemoryPerBlock ? emulation::kReserved
                                                                  : device.shared_memory;
  return cudaSuccess;
}

// Of every kernel as much: what one declares shows only when it runs.
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->sharedSizeBytes = emulation::kOwnShared;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulation::device().shared_memory - emulation::kOwnShared)
    return emulation::device().last_error = cudaErrorInvalidConfiguration;
  emulation::allowed()[{emulation::device().ordinal, reinterpret_cast<const void*>(kernel)}] =
      static_cast<size_t>(bytes);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int,
                                                          size_t shared_bytes) {
  const emulation::Device& device = emulation::device();
  const size_t each = shared_bytes + emulation::kOwnShared + emulation::kReserved;
  const size_t room =
      shared_bytes == 0 ? ~size_t{0} : static_cast<size_t>(device.shared_memory) / each;
  *blocks = static_cast<int>(
      std::min<size_t>(static_cast<size_t>(device.blocks_per_multiprocessor), room));
  return cudaSuccess;
}

#pragma GCC visibility pop
