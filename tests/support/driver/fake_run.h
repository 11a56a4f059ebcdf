// How a launch of the stand-in for the CUDA driver runs a graph: at once, node after node.
#pragma once

#include "fake_graphs.h"

namespace fake {

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
