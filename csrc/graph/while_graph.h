// A loop inside a CUDA graph: WHILE{ nodes }, built of captured graphs by their raw handles. No
// torch.
#pragma once

#include "graph/nodes.h"

namespace ak {

template <typename Handle>
inline Handle from(uint64_t value) {
  return reinterpret_cast<Handle>(value);
}

// A root graph whose one node loops over its body while the condition is not 0; it is 1 at every
// launch, and the body's last node sets it. Not for two threads at once.
class WhileGraph {
 public:
  explicit WhileGraph(std::shared_ptr<Driver> driver) : driver_(std::move(driver)) {
    check(driver_->cuCtxGetCurrent(&context_), "cuCtxGetCurrent");
    if (!context_) throw DriverError("no CUDA context is current: use the device first");
    check(driver_->cuGraphCreate(&root_, 0), "cuGraphCreate");
    try {
      add_loop();
    } catch (...) {
      close();
      throw;
    }
  }
  WhileGraph(const WhileGraph&) = delete;
  ~WhileGraph() { close(); }

  // As a schema's int is: signed.
  int64_t condition() const { return static_cast<int64_t>(handle_); }

  // A copy of a captured graph, kernel arguments included; returns its place in the body.
  size_t add_child(uint64_t graph, const std::vector<size_t>& after) {
    expect_open();
    if (auto reason = refusal(*driver_, from<CUgraph>(graph))) throw DriverError(*reason);
    const std::vector<CUgraphNode> before = at(after);
    return add("cuGraphAddChildGraphNode", [&](CUgraphNode* node) {
      return driver_->cuGraphAddChildGraphNode(node, body_, before.data(), before.size(),
                                               from<CUgraph>(graph));
    });
  }

  // A copy of a captured kernel with its attributes (whether it is cooperative, for one). A kernel
  // that sets the condition stands in the body itself.
  size_t add_kernel(uint64_t captured, const std::vector<size_t>& after) {
    expect_open();
    const auto source = from<CUgraphNode>(captured);
    CUDA_KERNEL_NODE_PARAMS_v2 params = {};
    check(driver_->cuGraphKernelNodeGetParams_v2(source, &params), "cuGraphKernelNodeGetParams");
    const std::vector<CUgraphNode> before = at(after);
    const size_t place = add("cuGraphAddKernelNode", [&](CUgraphNode* node) {
      return driver_->cuGraphAddKernelNode_v2(node, body_, before.data(), before.size(), &params);
    });
    const CUresult result = driver_->cuGraphKernelNodeCopyAttributes(nodes_[place], source);
    // A kernel without its attributes may not stay.
    if (result != CUDA_SUCCESS) close();
    check(result, "cuGraphKernelNodeCopyAttributes");
    return place;
  }

  // Device memory to pinned memory of the host.
  size_t add_copy(uint64_t destination, uint64_t source, size_t bytes,
                  const std::vector<size_t>& after) {
    expect_open();
    CUDA_MEMCPY3D copy = {};
    copy.srcMemoryType = CU_MEMORYTYPE_DEVICE;
    copy.srcDevice = static_cast<CUdeviceptr>(source);
    copy.dstMemoryType = CU_MEMORYTYPE_HOST;
    copy.dstHost = from<void*>(destination);
    copy.WidthInBytes = bytes;
    copy.Height = copy.Depth = 1;
    const std::vector<CUgraphNode> before = at(after);
    return add("cuGraphAddMemcpyNode", [&](CUgraphNode* node) {
      return driver_->cuGraphAddMemcpyNode(node, body_, before.data(), before.size(), &copy,
                                           context_);
    });
  }

  void instantiate() {
    expect_open();
    CUDA_GRAPH_INSTANTIATE_PARAMS params = {};
    const CUresult result = driver_->cuGraphInstantiateWithParams(&exec_, root_, &params);
    if (result != CUDA_SUCCESS) exec_ = nullptr;
    check(result, "cuGraphInstantiate (reason " + std::to_string(params.result_out) + ")");
  }

  void upload(uint64_t stream) {
    expect_ready();
    check(driver_->cuGraphUpload(exec_, from<CUstream>(stream)), "cuGraphUpload");
  }

  void launch(uint64_t stream) {
    expect_ready();
    check(driver_->cuGraphLaunch(exec_, from<CUstream>(stream)), "cuGraphLaunch");
  }

  // Frees what was built; a launch that still runs must be waited for before.
  void close() {
    if (exec_) driver_->cuGraphExecDestroy(exec_);
    if (root_) driver_->cuGraphDestroy(root_);
    exec_ = nullptr;
    root_ = nullptr;
    body_ = nullptr;
    nodes_.clear();
  }

 private:
  void check(CUresult result, const std::string& doing) const { driver_->check(result, doing); }

  void add_loop() {
    check(driver_->cuGraphConditionalHandleCreate(&handle_, root_, context_, 1,
                                                  CU_GRAPH_COND_ASSIGN_DEFAULT),
          "cuGraphConditionalHandleCreate");
    CUgraphNodeParams params = {};
    params.type = CU_GRAPH_NODE_TYPE_CONDITIONAL;
    params.conditional.handle = handle_;
    params.conditional.type = CU_GRAPH_COND_TYPE_WHILE;
    params.conditional.size = 1;
    params.conditional.ctx = context_;
    CUgraphNode node = nullptr;
    check(driver_->cuGraphAddNode(&node, root_, nullptr, 0, &params), "cuGraphAddNode");
    // The driver writes it while it adds the node.
    body_ = params.conditional.phGraph_out[0];
  }

  template <typename Add>
  size_t add(const char* doing, Add call) {
    CUgraphNode node = nullptr;
    check(call(&node), doing);
    nodes_.push_back(node);
    return nodes_.size() - 1;
  }

  std::vector<CUgraphNode> at(const std::vector<size_t>& places) const {
    std::vector<CUgraphNode> nodes;
    for (size_t place : places) {
      if (place >= nodes_.size())
        throw DriverError("a node can only follow nodes that are there, got " +
                          std::to_string(place));
      nodes.push_back(nodes_[place]);
    }
    return nodes;
  }

  void expect_open() const {
    if (!root_) throw DriverError("the loop is closed");
    if (exec_) throw DriverError("the loop is instantiated already");
  }

  void expect_ready() const {
    if (!exec_) throw DriverError("the loop is not instantiated, or closed");
  }

  std::shared_ptr<Driver> driver_;
  CUcontext context_ = nullptr;
  CUgraph root_ = nullptr, body_ = nullptr;
  CUgraphExec exec_ = nullptr;
  CUgraphConditionalHandle handle_ = 0;
  std::vector<CUgraphNode> nodes_;
};

}  // namespace ak
