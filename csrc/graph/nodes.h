// What a captured graph holds, and why the body of a conditional node would not take it. No torch.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "graph/driver.h"

namespace ak {

struct NodeInfo {
  CUgraphNode node;
  CUgraphNodeType type;
  std::vector<int64_t> after;  // places in the same list
};

struct NodeName {
  const char* name;
  const char* cause;  // of it being in a captured network; null where a body allows it
};

inline NodeName name_of(CUgraphNodeType type) {
  switch (type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
      return {"kernel", nullptr};
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      return {"memcpy", nullptr};
    case CU_GRAPH_NODE_TYPE_MEMSET:
      return {"memset", nullptr};
    case CU_GRAPH_NODE_TYPE_EMPTY:
      return {"empty", nullptr};
    case CU_GRAPH_NODE_TYPE_GRAPH:
      return {"child graph", nullptr};
    case CU_GRAPH_NODE_TYPE_HOST:
      return {"host callback", "a library that calls back on the CPU, such as a collective or I/O"};
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
      return {"event", "an event made with external=True, or timing inside the network"};
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL:
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT:
      return {"external semaphore", "work shared with a graphics library"};
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
      return {"memory allocation",
              "cudaMallocAsync inside the network (PYTORCH_CUDA_ALLOC_CONF backend:cudaMallocAsync "
              "or a library of its own)"};
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
      return {"batched memory operation", "a communication library"};
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
      return {"conditional",
              "torch.cond or while_loop inside the network: a graph that holds one cannot be "
              "embedded"};
    default:
      return {"unknown", "a driver newer than this package"};
  }
}

inline std::vector<NodeInfo> nodes_of(const Driver& driver, CUgraph graph) {
  size_t count = 0;
  driver.check(driver.cuGraphGetNodes(graph, nullptr, &count), "cuGraphGetNodes");
  std::vector<CUgraphNode> nodes(count);
  if (count) driver.check(driver.cuGraphGetNodes(graph, nodes.data(), &count), "cuGraphGetNodes");
  std::vector<NodeInfo> found;
  for (CUgraphNode node : nodes) {
    NodeInfo info = {node, CU_GRAPH_NODE_TYPE_EMPTY, {}};
    driver.check(driver.cuGraphNodeGetType(node, &info.type), "cuGraphNodeGetType");
    found.push_back(info);
  }
  return found;
}

// The same with every node's dependencies.
inline std::vector<NodeInfo> ordered_nodes_of(const Driver& driver, CUgraph graph) {
  std::vector<NodeInfo> found = nodes_of(driver, graph);
  const std::string doing = "cuGraphNodeGetDependencies";
  for (NodeInfo& info : found) {
    size_t count = 0;
    driver.check(driver.cuGraphNodeGetDependencies(info.node, nullptr, &count), doing);
    std::vector<CUgraphNode> before(count);
    if (count)
      driver.check(driver.cuGraphNodeGetDependencies(info.node, before.data(), &count), doing);
    for (CUgraphNode node : before)
      for (size_t k = 0; k < found.size(); ++k)
        if (found[k].node == node) info.after.push_back(static_cast<int64_t>(k));
  }
  return found;
}

// Memory that a copy on the device can reach at any time later. A unified address may be anyone's.
inline bool is_lasting(const Driver& driver, CUmemorytype type, const void* host,
                       CUdeviceptr unified) {
  if (type != CU_MEMORYTYPE_HOST && type != CU_MEMORYTYPE_UNIFIED) return true;
  const CUdeviceptr at = type == CU_MEMORYTYPE_HOST ? reinterpret_cast<CUdeviceptr>(host) : unified;
  CUmemorytype found = {};
  return driver.cuPointerGetAttribute(&found, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at) == CUDA_SUCCESS;
}

// Why a conditional node's body would not take the graph, naming its node; nothing where it would.
inline std::optional<std::string> refusal(const Driver& driver, CUgraph graph) {
  const std::vector<NodeInfo> nodes = nodes_of(driver, graph);
  for (size_t k = 0; k < nodes.size(); ++k) {
    const NodeName named = name_of(nodes[k].type);
    const auto say = [&](const std::string& what, const std::string& cause) {
      return "node " + std::to_string(k) + " of " + std::to_string(nodes.size()) + " is " + what +
             ", which a loop inside a graph cannot hold; usually from " + cause;
    };
    if (named.cause) return say(std::string("a node of type ") + named.name, named.cause);
    if (nodes[k].type == CU_GRAPH_NODE_TYPE_GRAPH) {
      CUgraph inner = nullptr;
      driver.check(driver.cuGraphChildGraphNodeGetGraph(nodes[k].node, &inner),
                   "cuGraphChildGraphNodeGetGraph");
      if (auto reason = refusal(driver, inner)) return "inside a child graph, " + *reason;
    }
    CUDA_MEMCPY3D copy = {};
    // A copy that cannot be described so is left to the driver's own judgement.
    if (nodes[k].type == CU_GRAPH_NODE_TYPE_MEMCPY &&
        driver.cuGraphMemcpyNodeGetParams(nodes[k].node, &copy) == CUDA_SUCCESS &&
        !(is_lasting(driver, copy.srcMemoryType, copy.srcHost, copy.srcDevice) &&
          is_lasting(driver, copy.dstMemoryType, copy.dstHost, copy.dstDevice)))
      return say("a copy from or to pageable memory of the host",
                 "a tensor made on the CPU inside the network (.to(device), torch.tensor)");
  }
  return std::nullopt;
}

}  // namespace ak
