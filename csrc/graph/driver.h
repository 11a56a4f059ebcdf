// The CUDA driver, found when it is first asked for: importing needs none. No torch.
//
// Every function is fetched under the name whose arguments never change again, so that one build
// serves the drivers of CUDA 12.4 to 13: a header's plain `cuGraphAddNode` takes edge data
// from 13.0 on, the symbol of that name takes none, ever.
#pragma once

#include <cuda.h>
#include <dlfcn.h>

#include <memory>
#include <stdexcept>
#include <string>

namespace ak {

struct DriverError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// clang-format off
#define AK_DRIVER_FUNCTIONS(F)                                                                    \
  F(cuInit, (unsigned))                                                                           \
  F(cuDriverGetVersion, (int*))                                                                   \
  F(cuGetErrorName, (CUresult, const char**))                                                     \
  F(cuGetErrorString, (CUresult, const char**))                                                   \
  F(cuCtxGetCurrent, (CUcontext*))                                                                \
  F(cuPointerGetAttribute, (void*, CUpointer_attribute, CUdeviceptr))                             \
  F(cuGraphCreate, (CUgraph*, unsigned))                                                          \
  F(cuGraphDestroy, (CUgraph))                                                                    \
  F(cuGraphGetNodes, (CUgraph, CUgraphNode*, size_t*))                                            \
  F(cuGraphNodeGetType, (CUgraphNode, CUgraphNodeType*))                                          \
  F(cuGraphNodeGetDependencies, (CUgraphNode, CUgraphNode*, size_t*))                             \
  F(cuGraphChildGraphNodeGetGraph, (CUgraphNode, CUgraph*))                                       \
  F(cuGraphMemcpyNodeGetParams, (CUgraphNode, CUDA_MEMCPY3D*))                                    \
  F(cuGraphKernelNodeGetParams_v2, (CUgraphNode, CUDA_KERNEL_NODE_PARAMS_v2*))                    \
  F(cuGraphKernelNodeCopyAttributes, (CUgraphNode, CUgraphNode))                                  \
  F(cuGraphConditionalHandleCreate,                                                               \
    (CUgraphConditionalHandle*, CUgraph, CUcontext, unsigned, unsigned))                          \
  F(cuGraphAddNode, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t, CUgraphNodeParams*))      \
  F(cuGraphAddChildGraphNode, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t, CUgraph))       \
  F(cuGraphAddKernelNode_v2, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t,                  \
                              const CUDA_KERNEL_NODE_PARAMS_v2*))                                 \
  F(cuGraphAddMemcpyNode, (CUgraphNode*, CUgraph, const CUgraphNode*, size_t,                     \
                           const CUDA_MEMCPY3D*, CUcontext))                                      \
  F(cuGraphInstantiateWithParams, (CUgraphExec*, CUgraph, CUDA_GRAPH_INSTANTIATE_PARAMS*))        \
  F(cuGraphExecDestroy, (CUgraphExec))                                                            \
  F(cuGraphUpload, (CUgraphExec, CUstream))                                                       \
  F(cuGraphLaunch, (CUgraphExec, CUstream))
// clang-format on

// The headers' macros would rename what is fetched by name.
#undef cuGraphAddNode
#undef cuGraphNodeGetDependencies
#undef cuGraphInstantiateWithParams
#undef cuGraphUpload
#undef cuGraphLaunch

struct Driver {
  // The conditional WHILE node, and a setter that a kernel can call, came with CUDA 12.4.
  static constexpr int kLeastVersion = 12040;

#define AK_DECLARE(name, arguments) CUresult(*name) arguments = nullptr;
  AK_DRIVER_FUNCTIONS(AK_DECLARE)
#undef AK_DECLARE
  int version = 0;

  explicit Driver(const std::string& path) : library_(dlopen(path.c_str(), RTLD_NOW), &dlclose) {
    if (!library_) throw DriverError("no CUDA driver: " + said_by_loader(path));
    load("cuInit", &cuInit);
    load("cuDriverGetVersion", &cuDriverGetVersion);
    load("cuGetErrorName", &cuGetErrorName);
    load("cuGetErrorString", &cuGetErrorString);
    check(cuInit(0), "cuInit");
    check(cuDriverGetVersion(&version), "cuDriverGetVersion");
    // An older driver lacks some of these names: this is said better than its loader would.
    if (version < kLeastVersion)
      throw DriverError("the CUDA driver knows CUDA " + written(version) +
                        "; a loop inside a graph needs 12.4 or newer");
#define AK_LOAD(name, arguments) load(#name, &name);
    AK_DRIVER_FUNCTIONS(AK_LOAD)
#undef AK_LOAD
  }

  void check(CUresult result, const std::string& doing) const {
    if (result == CUDA_SUCCESS) return;
    const char *name = nullptr, *text = nullptr;
    cuGetErrorName(result, &name);
    cuGetErrorString(result, &text);
    throw DriverError(doing + ": " + (name ? name : "error " + std::to_string(result)) +
                      (text ? std::string(", ") + text : std::string()));
  }

 private:
  static std::string written(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  }

  static std::string said_by_loader(const std::string& path) {
    const char* said = dlerror();
    return said ? said : path;
  }

  template <typename Function>
  void load(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library_.get(), name));
    if (!*function) throw DriverError(std::string("the CUDA driver has no ") + name);
  }

  std::unique_ptr<void, int (*)(void*)> library_;
};

}  // namespace ak
