// The graphs of a stand-in for the CUDA driver and the rules they are held to. A handle is a
// number that is never given twice, so one that was destroyed is known to be.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace fake {

struct Callback {
  std::string name;
  int64_t (*call)(int64_t);  // 0, or the kernel failed
};

struct Node {
  CUgraphNodeType type;
  CUgraph graph = nullptr;
  std::vector<CUgraphNode> before = {};
  CUDA_KERNEL_NODE_PARAMS_v2 kernel = {};
  int64_t argument = 0;
  void* arguments[1] = {};
  bool cooperative = false;
  CUDA_MEMCPY3D copy = {};
  CUgraph inner[1] = {};  // a child, or the body of a conditional node
  CUgraphConditionalHandle handle = 0;
};

struct Graph {
  std::vector<CUgraphNode> nodes;
  CUgraphNode owner;  // the node it is inside; null for a root
};

struct Condition {
  CUgraph root;
  std::optional<unsigned> value;  // at a launch; none where the driver leaves it undefined
  bool used = false;
};

struct Exec {
  CUgraph source, graph;
  std::map<CUgraphConditionalHandle, Condition> conditions;
};

struct Memory {
  uint64_t start, bytes;
  CUmemorytype type;
};

struct Failure {
  std::string function;
  int calls;  // until it
  CUresult error;
};

struct World {
  int version = 0;
  bool initialised = false;
  CUcontext context = nullptr;
  std::map<CUgraph, Graph> graphs;
  std::map<CUgraphNode, Node> nodes;
  std::map<CUgraphExec, Exec> execs;
  std::map<CUgraphConditionalHandle, Condition> conditions;
  std::vector<Callback> callbacks;
  std::vector<Memory> memory;
  std::vector<Failure> failures;
  Exec* running = nullptr;
  int64_t launches = 0;
  std::string log, faults;
};

inline World& world() {
  static World only;
  return only;
}

inline uint64_t next_number() {
  static uint64_t last = 0x1000;  // lives longer than a world: old handles stay unknown
  return last += 0x10;
}

template <typename Handle>
Handle next_handle() {
  return reinterpret_cast<Handle>(next_number());
}

// An error, and why, for the test that did not expect it.
inline CUresult refuse(const std::string& why, CUresult error = CUDA_ERROR_INVALID_VALUE) {
  world().faults += why + "\n";
  return error;
}

inline void log(const std::string& line) { world().log += line + "\n"; }

template <typename Handle, typename Value>
Value* find(std::map<Handle, Value>& among, Handle handle) {
  const auto found = among.find(handle);
  return found == among.end() ? nullptr : &found->second;
}

inline Graph* find(CUgraph graph) { return find(world().graphs, graph); }
inline Node* find(CUgraphNode node) { return find(world().nodes, node); }
inline Exec* find(CUgraphExec exec) { return find(world().execs, exec); }

inline CUgraph create(CUgraphNode owner = nullptr) {
  const auto graph = next_handle<CUgraph>();
  world().graphs[graph].owner = owner;
  return graph;
}

inline void destroy(CUgraph graph) {
  World& w = world();
  for (CUgraphNode node : w.graphs[graph].nodes) {
    if (w.nodes[node].inner[0]) destroy(w.nodes[node].inner[0]);
    w.nodes.erase(node);
  }
  for (auto at = w.conditions.begin(); at != w.conditions.end();)
    at = at->second.root == graph ? w.conditions.erase(at) : std::next(at);
  w.graphs.erase(graph);
}

inline CUgraph clone(CUgraph source, CUgraphNode owner) {
  World& w = world();
  const CUgraph made = create(owner);
  std::map<CUgraphNode, CUgraphNode> as;
  for (CUgraphNode old : w.graphs[source].nodes) {
    const CUgraphNode fresh = as[old] = next_handle<CUgraphNode>();
    Node& node = w.nodes[fresh] = w.nodes[old];
    node.graph = made;
    for (CUgraphNode& before : node.before) before = as[before];
    if (node.inner[0]) node.inner[0] = clone(node.inner[0], fresh);
    w.graphs[made].nodes.push_back(fresh);
  }
  return made;
}

inline CUgraph root_of(CUgraph graph) {
  while (const CUgraphNode owner = find(graph)->owner) graph = find(owner)->graph;
  return graph;
}

inline bool holds(CUgraph graph, const std::set<int>& types) {
  const std::vector<CUgraphNode>& nodes = find(graph)->nodes;
  return std::any_of(nodes.begin(), nodes.end(), [&](CUgraphNode handle) {
    const Node& node = *find(handle);
    return types.count(node.type) || (node.inner[0] && holds(node.inner[0], types));
  });
}

// The device or pinned memory that a test told of; null for pageable memory.
inline const Memory* memory_at(uint64_t address) {
  for (const Memory& known : world().memory)
    if (address >= known.start && address < known.start + known.bytes) return &known;
  return nullptr;
}

// Whether a copy on the device reaches these bytes. Device memory need not be told of.
inline bool reaches(CUmemorytype type, uint64_t address, uint64_t bytes) {
  const Memory* known = memory_at(address);
  if (!known) return type == CU_MEMORYTYPE_DEVICE;
  if (address + bytes > known->start + known->bytes) return false;
  return type == known->type || type == CU_MEMORYTYPE_UNIFIED;
}

// An end of a copy: where it is.
inline uint64_t end_of(CUmemorytype type, const void* host, CUdeviceptr device) {
  return type == CU_MEMORYTYPE_HOST ? reinterpret_cast<uint64_t>(host) : device;
}

inline uint64_t source_of(const CUDA_MEMCPY3D& copy) {
  return end_of(copy.srcMemoryType, copy.srcHost, copy.srcDevice);
}

inline uint64_t destination_of(const CUDA_MEMCPY3D& copy) {
  return end_of(copy.dstMemoryType, copy.dstHost, copy.dstDevice);
}

// What a conditional node's body, or a graph inside it, may not hold; empty where all is allowed.
inline std::string forbidden(CUgraph body) {
  for (CUgraphNode handle : find(body)->nodes) {
    const Node& node = *find(handle);
    const CUDA_MEMCPY3D& copy = node.copy;
    switch (node.type) {
      case CU_GRAPH_NODE_TYPE_KERNEL:
      case CU_GRAPH_NODE_TYPE_MEMSET:
      case CU_GRAPH_NODE_TYPE_EMPTY:
        break;
      case CU_GRAPH_NODE_TYPE_MEMCPY:
        if (!reaches(copy.srcMemoryType, source_of(copy), copy.WidthInBytes) ||
            !reaches(copy.dstMemoryType, destination_of(copy), copy.WidthInBytes))
          return "a copy of pageable memory in a body";
        break;
      case CU_GRAPH_NODE_TYPE_GRAPH:
      case CU_GRAPH_NODE_TYPE_CONDITIONAL:
        if (!node.inner[0]) return "a conditional node without a body";
        if (std::string what = forbidden(node.inner[0]); !what.empty()) return what;
        break;
      default:
        return "a node of type " + std::to_string(node.type) + " in a body";
    }
  }
  return "";
}

inline std::string forbidden_in_bodies(CUgraph graph) {
  for (CUgraphNode handle : find(graph)->nodes) {
    const Node& node = *find(handle);
    if (node.type != CU_GRAPH_NODE_TYPE_CONDITIONAL) continue;
    if (!node.inner[0]) return "a conditional node without a body";
    if (std::string what = forbidden(node.inner[0]); !what.empty()) return what;
  }
  return "";
}

inline const Callback& callback_of(const Node& node) {
  return world().callbacks[reinterpret_cast<uint64_t>(node.kernel.func) - 1];
}

// "kernel advance(3)", "copy 8", "child graph", or the number of another type.
inline std::string said(const Node& node) {
  if (node.type == CU_GRAPH_NODE_TYPE_KERNEL)
    return "kernel " + callback_of(node).name + "(" + std::to_string(node.argument) + ")";
  if (node.type == CU_GRAPH_NODE_TYPE_MEMCPY)
    return "copy " + std::to_string(node.copy.WidthInBytes);
  if (node.type == CU_GRAPH_NODE_TYPE_GRAPH) return "child graph";
  return "type " + std::to_string(node.type);
}

inline CUresult unknown(const std::string& what) { return refuse("unknown or destroyed " + what); }

// Adds what was checked already; the handle is written only when the node is there.
inline CUresult add(CUgraphNode* out, CUgraph graph, const CUgraphNode* before, size_t count,
                    Node node) {
  Graph* into = find(graph);
  if (!into) return unknown("graph");
  for (size_t k = 0; k < count; ++k) {
    const Node* known = find(before[k]);
    if (!known) return unknown("dependency");
    if (known->graph != graph) return refuse("a dependency in another graph");
    if (std::count(before, before + count, before[k]) > 1) return refuse("a dependency twice");
  }
  node.graph = graph;
  node.before.assign(before, before + count);
  const auto handle = next_handle<CUgraphNode>();
  if (node.type == CU_GRAPH_NODE_TYPE_GRAPH) node.inner[0] = clone(node.inner[0], handle);
  if (node.type == CU_GRAPH_NODE_TYPE_CONDITIONAL) node.inner[0] = create(handle);
  world().nodes[handle] = node;
  into->nodes.push_back(handle);
  *out = handle;
  return CUDA_SUCCESS;
}

}  // namespace fake
