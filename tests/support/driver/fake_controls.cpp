// The controls of the stand-in for the CUDA driver: what a capture would leave, memory, failures,
// and what was seen. fake_driver.py calls them; 0 is no handle.
#include "fake_graphs.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace fake;

namespace {

uint64_t captured(CUgraph graph, const uint64_t* before, size_t count, Node node) {
  if (!find(graph)) return 0;
  node.graph = graph;
  for (size_t k = 0; k < count; ++k) {
    node.before.push_back(reinterpret_cast<CUgraphNode>(before[k]));
    if (!find(node.before[k]) || find(node.before[k])->graph != graph) return 0;
  }
  const auto handle = next_handle<CUgraphNode>();
  if (node.inner[0]) node.inner[0] = clone(node.inner[0], handle);
  world().nodes[handle] = node;
  find(graph)->nodes.push_back(handle);
  return reinterpret_cast<uint64_t>(handle);
}

std::string written(const Node& node) {
  std::string text = said(node);
  if (node.type == CU_GRAPH_NODE_TYPE_KERNEL) {
    const auto& k = node.kernel;
    for (unsigned size : {k.gridDimX, k.gridDimY, k.gridDimZ, k.blockDimX, k.blockDimY, k.blockDimZ,
                          k.sharedMemBytes})
      text += " " + std::to_string(size);
  }
  return text + (node.cooperative ? " cooperative" : "");
}

void write(CUgraph graph, std::string* text) {
  const std::vector<CUgraphNode>& nodes = find(graph)->nodes;
  for (CUgraphNode handle : nodes) {
    const Node& node = *find(handle);
    *text += written(node);
    for (CUgraphNode before : node.before)
      *text += (before == node.before[0] ? " after " : ", ") +
               std::to_string(std::find(nodes.begin(), nodes.end(), before) - nodes.begin());
    *text += "\n";
  }
}

}  // namespace

EXPORT void fake_reset(int version, int has_context) {
  world() = World();
  world().version = version;
  world().context = reinterpret_cast<CUcontext>(has_context ? next_number() : 0);
}

// The so many-th call from now on.
EXPORT void fake_fail(const char* function, int call, int error) {
  world().failures.push_back({function, call, static_cast<CUresult>(error)});
}

EXPORT void fake_memory(uint64_t start, uint64_t bytes, int type) {
  world().memory.push_back({start, bytes, static_cast<CUmemorytype>(type)});
}

EXPORT uint64_t fake_callback(const char* name, int64_t (*call)(int64_t)) {
  world().callbacks.push_back({name, call});
  return world().callbacks.size();
}

EXPORT uint64_t fake_graph() { return reinterpret_cast<uint64_t>(create()); }

EXPORT int fake_destroy(CUgraph graph) {
  if (!find(graph)) return 0;
  destroy(graph);
  return 1;
}

// Of a type that needs no more than to be there.
EXPORT uint64_t fake_node(CUgraph graph, const uint64_t* before, size_t count, int type) {
  const std::set<int> fuller = {CU_GRAPH_NODE_TYPE_KERNEL, CU_GRAPH_NODE_TYPE_MEMCPY,
                                CU_GRAPH_NODE_TYPE_GRAPH};
  if (fuller.count(type)) return 0;
  return captured(graph, before, count, {static_cast<CUgraphNodeType>(type)});
}

// sizes: of the grid, the blocks and the shared memory.
EXPORT uint64_t fake_kernel(CUgraph graph, const uint64_t* before, size_t count, uint64_t callback,
                            int64_t argument, int cooperative, const unsigned* sizes) {
  Node node = {CU_GRAPH_NODE_TYPE_KERNEL};
  auto& k = node.kernel;
  k.func = reinterpret_cast<CUfunction>(callback);
  k.gridDimX = sizes[0], k.gridDimY = sizes[1], k.gridDimZ = sizes[2];
  k.blockDimX = sizes[3], k.blockDimY = sizes[4], k.blockDimZ = sizes[5];
  k.sharedMemBytes = sizes[6];
  node.argument = argument;
  node.cooperative = cooperative != 0;
  return captured(graph, before, count, node);
}

EXPORT uint64_t fake_copy(CUgraph graph, const uint64_t* before, size_t count, int to_type,
                          uint64_t to, int from_type, uint64_t from, uint64_t bytes) {
  Node node = {CU_GRAPH_NODE_TYPE_MEMCPY};
  auto& c = node.copy;
  c.dstMemoryType = static_cast<CUmemorytype>(to_type);
  c.srcMemoryType = static_cast<CUmemorytype>(from_type);
  if (to_type == CU_MEMORYTYPE_HOST)
    c.dstHost = reinterpret_cast<void*>(to);
  else
    c.dstDevice = to;
  if (from_type == CU_MEMORYTYPE_HOST)
    c.srcHost = reinterpret_cast<const void*>(from);
  else
    c.srcDevice = from;
  c.WidthInBytes = bytes;
  c.Height = c.Depth = 1;
  return captured(graph, before, count, node);
}

EXPORT uint64_t fake_child(CUgraph graph, const uint64_t* before, size_t count, CUgraph inner) {
  Node node = {CU_GRAPH_NODE_TYPE_GRAPH};
  node.inner[0] = inner;
  return find(inner) ? captured(graph, before, count, node) : 0;
}

// What a kernel does through cudaGraphSetConditional.
EXPORT void fake_set_condition(CUgraphConditionalHandle handle, unsigned value) {
  Exec* running = world().running;
  Condition* condition = running ? find(running->conditions, handle) : nullptr;
  if (condition)
    condition->value = value;
  else
    refuse(running ? "a condition that the running graph lacks is set"
                   : "a condition is set while nothing runs");
}

// Graphs of the user's own, execs, launches since the reset.
EXPORT void fake_counts(int64_t* counts) {
  const World& w = world();
  counts[0] = std::count_if(w.graphs.begin(), w.graphs.end(),
                            [](const auto& one) { return one.second.owner == nullptr; });
  counts[0] -= static_cast<int64_t>(w.execs.size());
  counts[1] = static_cast<int64_t>(w.execs.size());
  counts[2] = w.launches;
}

EXPORT const char* fake_log() { return world().log.c_str(); }

EXPORT const char* fake_faults() { return world().faults.c_str(); }

EXPORT void fake_forget_faults() { world().faults.clear(); }

// The bodies of the nodes of a handle, or of all for 0: a line each node.
EXPORT const char* fake_plan(CUgraphConditionalHandle handle) {
  static std::string text;
  text.clear();
  for (const auto& [known, condition] : world().conditions)
    for (CUgraphNode node : find(condition.root)->nodes)
      if (find(node)->handle == known && (handle == known || handle == 0))
        write(find(node)->inner[0], &text);
  return text.c_str();
}
