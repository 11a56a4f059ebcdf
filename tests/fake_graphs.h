// The graphs of a stand-in for the CUDA driver, the rules they are held to, and how they run. A
// handle is a number that is never given twice, so one that was destroyed is known to be.
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
  std::map<std::string, Failure> failures;
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

// Device or pinned memory that holds all these bytes; null for pageable memory.
inline const Memory* memory_at(uint64_t start, uint64_t bytes) {
  for (const Memory& known : world().memory)
    if (start >= known.start && start + bytes <= known.start + known.bytes) return &known;
  return nullptr;
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
        if (!memory_at(source_of(copy), copy.WidthInBytes) ||
            !memory_at(destination_of(copy), copy.WidthInBytes))
          return "a copy of pageable memory in a body";
        break;
      case CU_GRAPH_NODE_TYPE_GRAPH:
      case CU_GRAPH_NODE_TYPE_CONDITIONAL:
        if (std::string what = forbidden(node.inner[0]); !what.empty()) return what;
        break;
      default:
        return "a node of type " + std::to_string(node.type) + " in a body";
    }
  }
  return "";
}

inline std::string forbidden_in_bodies(CUgraph graph) {
  for (CUgraphNode node : find(graph)->nodes)
    if (find(node)->type == CU_GRAPH_NODE_TYPE_CONDITIONAL)
      if (std::string what = forbidden(find(node)->inner[0]); !what.empty()) return what;
  return "";
}

inline const Callback& callback_of(const Node& node) {
  return world().callbacks[reinterpret_cast<uint64_t>(node.kernel.func) - 1];
}

// "kernel advance(3)", "copy 8", or the number of the type.
inline std::string said(const Node& node) {
  if (node.type == CU_GRAPH_NODE_TYPE_KERNEL)
    return "kernel " + callback_of(node).name + "(" + std::to_string(node.argument) + ")";
  if (node.type == CU_GRAPH_NODE_TYPE_MEMCPY)
    return "copy " + std::to_string(node.copy.WidthInBytes);
  return "type " + std::to_string(node.type);
}

inline CUresult run(CUgraph graph);

inline CUresult run_loop(const Node& node) {
  constexpr int kMostTicks = 100000;
  const Condition& condition = world().running->conditions[node.handle];
  for (int tick = 0; tick < kMostTicks; ++tick) {
    if (!condition.value) return refuse("the condition is read before it is set");
    if (*condition.value == 0) return CUDA_SUCCESS;
    if (const CUresult error = run(node.inner[0])) return error;
  }
  return refuse("a loop that does not end", CUDA_ERROR_LAUNCH_TIMEOUT);
}

inline CUresult run_node(const Node& node) {
  switch (node.type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
      log(said(node));
      return callback_of(node).call(node.argument) ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_MEMCPY:
      log(said(node));
      std::memcpy(reinterpret_cast<void*>(destination_of(node.copy)),
                  reinterpret_cast<const void*>(source_of(node.copy)), node.copy.WidthInBytes);
      return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_GRAPH:
      return run(node.inner[0]);
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
      return run_loop(node);
    default:
      return CUDA_SUCCESS;
  }
}

// Of all nodes that can run, the one added last: a dependency that was left out then shows.
inline CUresult run(CUgraph graph) {
  std::vector<CUgraphNode> waiting = find(graph)->nodes;
  std::set<CUgraphNode> done;
  while (!waiting.empty()) {
    const auto ready = std::find_if(waiting.rbegin(), waiting.rend(), [&](CUgraphNode handle) {
      const std::vector<CUgraphNode>& before = find(handle)->before;
      return std::all_of(before.begin(), before.end(), [&](auto one) { return done.count(one); });
    });
    const CUgraphNode next = *ready;
    if (const CUresult error = run_node(*find(next))) return error;
    done.insert(next);
    waiting.erase(std::next(ready).base());
  }
  return CUDA_SUCCESS;
}

}  // namespace fake
