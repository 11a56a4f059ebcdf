// A stand-in for libcuda.so.1: the functions that csrc/graph/driver.h loads, stricter than the driver in
// that what CUDA leaves undefined is an error here, and the controls of fake_driver.py.
#include <type_traits>

#include "graph/driver.h"
#include "fake_run.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
// A call may be told to fail; but for a few, none comes before cuInit.
#define ENTER \
  if (const CUresult error = enter(__func__)) return error

using namespace fake;

namespace {

CUresult enter(const std::string& function) {
  World& w = world();
  for (Failure& failure : w.failures)
    if (failure.function == function && --failure.calls == 0) return failure.error;
  if (!w.initialised && function != "cuInit" && function != "cuDriverGetVersion")
    return refuse(function + " before cuInit", CUDA_ERROR_NOT_INITIALIZED);
  return CUDA_SUCCESS;
}

template <typename Handle>
CUresult list(const std::vector<Handle>& found, Handle* out, size_t* count) {
  if (out) std::copy_n(found.begin(), std::min(*count, found.size()), out);
  *count = out ? std::min(*count, found.size()) : found.size();
  return CUDA_SUCCESS;
}

}  // namespace

EXPORT CUresult cuInit(unsigned flags) {
  ENTER;
  if (flags) return refuse("flags of cuInit");
  world().initialised = true;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int* version) {
  ENTER;
  *version = world().version;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult error, const char** name) {
  const std::map<CUresult, const char*> names = {
      {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
      {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
      {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
      {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
      {CUDA_ERROR_LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT"},
      {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
  };
  const auto found = names.find(error);
  *name = found == names.end() ? nullptr : found->second;
  return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char** text) {
  const CUresult result = cuGetErrorName(error, text);
  if (*text) *text = "said by the stand-in";
  return result;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  ENTER;
  *context = world().context;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute,
                                      CUdeviceptr pointer) {
  ENTER;
  if (attribute != CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
    return refuse("a pointer attribute that is not here", CUDA_ERROR_NOT_SUPPORTED);
  const Memory* known = memory_at(pointer);
  if (!known) return CUDA_ERROR_INVALID_VALUE;  // no fault: this is how pageable memory is known
  *static_cast<CUmemorytype*>(data) = known->type;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphCreate(CUgraph* out, unsigned flags) {
  ENTER;
  if (flags) return refuse("flags of cuGraphCreate");
  *out = create();
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphDestroy(CUgraph graph) {
  ENTER;
  if (!find(graph)) return unknown("graph");
  if (find(graph)->owner) return refuse("a graph that belongs to a node is destroyed");
  destroy(graph);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, size_t* count) {
  ENTER;
  return find(graph) ? list(find(graph)->nodes, nodes, count) : unknown("graph");
}

EXPORT CUresult cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
  ENTER;
  if (!find(node)) return unknown("node");
  *type = find(node)->type;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode* nodes, size_t* count) {
  ENTER;
  return find(node) ? list(find(node)->before, nodes, count) : unknown("node");
}

EXPORT CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph* graph) {
  ENTER;
  if (!find(node) || find(node)->type != CU_GRAPH_NODE_TYPE_GRAPH) return unknown("child node");
  *graph = find(node)->inner[0];
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D* copy) {
  ENTER;
  if (!find(node) || find(node)->type != CU_GRAPH_NODE_TYPE_MEMCPY) return unknown("memcpy node");
  *copy = find(node)->copy;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2* out) {
  ENTER;
  Node* known = find(node);
  if (!known || known->type != CU_GRAPH_NODE_TYPE_KERNEL) return unknown("kernel node");
  *out = known->kernel;
  known->arguments[0] = &known->argument;
  out->kernelParams = known->arguments;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphKernelNodeCopyAttributes(CUgraphNode to, CUgraphNode from) {
  ENTER;
  for (CUgraphNode node : {to, from})
    if (!find(node) || find(node)->type != CU_GRAPH_NODE_TYPE_KERNEL) return unknown("kernel node");
  find(to)->cooperative = find(from)->cooperative;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphConditionalHandleCreate(CUgraphConditionalHandle* out, CUgraph graph,
                                               CUcontext context, unsigned value, unsigned flags) {
  ENTER;
  World& w = world();
  if (!find(graph)) return unknown("graph");
  if (find(graph)->owner) return refuse("a handle of a graph that is no root");
  if (!w.context) return refuse("no context", CUDA_ERROR_INVALID_CONTEXT);
  if (context && context != w.context) return refuse("a handle of another context");
  if (flags & ~CU_GRAPH_COND_ASSIGN_DEFAULT) return refuse("flags of a conditional handle");
  const uint64_t handle = next_number();
  w.conditions[handle] = {graph, flags ? std::optional<unsigned>(value) : std::nullopt};
  *out = handle;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphAddNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* before,
                               size_t count, CUgraphNodeParams* params) {
  ENTER;
  if (params->type != CU_GRAPH_NODE_TYPE_CONDITIONAL)
    return refuse("a node that has a function of its own here", CUDA_ERROR_NOT_SUPPORTED);
  const CUgraphNodeParams clean = {};
  if (std::memcmp(params->reserved0, clean.reserved0, sizeof clean.reserved0) || params->reserved2)
    return refuse("reserved fields that are not zero");
  auto& asked = params->conditional;
  Condition* condition = find(world().conditions, asked.handle);
  if (!find(graph)) return unknown("graph");
  if (!condition) return unknown("conditional handle");
  if (condition->root != root_of(graph)) return refuse("a conditional handle of another root");
  if (condition->used) return refuse("a second node of a conditional handle");
  if (asked.type != CU_GRAPH_COND_TYPE_WHILE)
    return refuse("a conditional node that is no WHILE", CUDA_ERROR_NOT_SUPPORTED);
  if (asked.size != 1) return refuse("a WHILE node of other than one body");
  if (asked.ctx != world().context) return refuse("a conditional node of another context");
  Node node = {CU_GRAPH_NODE_TYPE_CONDITIONAL};
  node.handle = asked.handle;
  if (const CUresult error = add(out, graph, before, count, node)) return error;
  condition->used = true;
  asked.phGraph_out = find(*out)->inner;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphAddChildGraphNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* before,
                                         size_t count, CUgraph child) {
  ENTER;
  if (!find(child)) return unknown("child graph");
  if (child == graph) return refuse("a graph inside itself");
  if (holds(child, {CU_GRAPH_NODE_TYPE_CONDITIONAL, CU_GRAPH_NODE_TYPE_MEM_ALLOC,
                    CU_GRAPH_NODE_TYPE_MEM_FREE}))
    return refuse("a child that holds a conditional or an allocation", CUDA_ERROR_NOT_SUPPORTED);
  Node node = {CU_GRAPH_NODE_TYPE_GRAPH};
  node.inner[0] = child;
  return add(out, graph, before, count, node);
}

EXPORT CUresult cuGraphAddKernelNode_v2(CUgraphNode* out, CUgraph graph, const CUgraphNode* before,
                                        size_t count, const CUDA_KERNEL_NODE_PARAMS_v2* params) {
  ENTER;
  const auto& p = *params;
  const auto function = reinterpret_cast<uint64_t>(p.func);
  if (function == 0 || function > world().callbacks.size()) return refuse("an unknown kernel");
  if (!p.kernelParams || p.extra) return refuse("a kernel without its one argument");
  if (!(p.gridDimX && p.gridDimY && p.gridDimZ && p.blockDimX && p.blockDimY && p.blockDimZ))
    return refuse("a kernel without threads");
  Node node = {CU_GRAPH_NODE_TYPE_KERNEL};
  node.kernel = p;
  node.argument = *static_cast<const int64_t*>(p.kernelParams[0]);
  return add(out, graph, before, count, node);
}

EXPORT CUresult cuGraphAddMemcpyNode(CUgraphNode* out, CUgraph graph, const CUgraphNode* before,
                                     size_t count, const CUDA_MEMCPY3D* params, CUcontext context) {
  ENTER;
  const auto& p = *params;
  if (context != world().context) return refuse("a copy of another context");
  if (p.reserved0 || p.reserved1) return refuse("reserved fields that are not zero");
  if (p.WidthInBytes == 0 || p.Height != 1 || p.Depth != 1)
    return refuse("a copy of other than one row", CUDA_ERROR_NOT_SUPPORTED);
  for (const auto& [type, at] :
       {std::pair(p.srcMemoryType, source_of(p)), std::pair(p.dstMemoryType, destination_of(p))})
    if (type == CU_MEMORYTYPE_DEVICE && !reaches(type, at, p.WidthInBytes))
      return refuse("device memory that is not there");
  Node node = {CU_GRAPH_NODE_TYPE_MEMCPY};
  node.copy = p;
  return add(out, graph, before, count, node);
}

EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph graph,
                                             CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
  ENTER;
  World& w = world();
  params->result_out = CUDA_GRAPH_INSTANTIATE_ERROR;
  if (!find(graph)) return unknown("graph");
  if (find(graph)->owner) return refuse("a graph that belongs to a node is instantiated");
  if (params->flags) return refuse("flags of an instantiation");
  params->result_out = CUDA_GRAPH_INSTANTIATE_INVALID_STRUCTURE;
  if (const std::string what = forbidden_in_bodies(graph); !what.empty())
    return refuse(what, CUDA_ERROR_NOT_SUPPORTED);
  if (holds(graph, {CU_GRAPH_NODE_TYPE_CONDITIONAL}))
    for (const auto& [handle, exec] : w.execs)
      if (exec.source == graph) return refuse("a graph with conditionals is instantiated twice");
  std::map<CUgraphConditionalHandle, Condition> conditions;
  for (const auto& [handle, condition] : w.conditions) {
    if (condition.root != graph) continue;
    // CUDA_GRAPH_INSTANTIATE_CONDITIONAL_HANDLE_UNUSED, which older headers lack.
    params->result_out = static_cast<CUgraphInstantiateResult>(5);
    if (!condition.used) return refuse("a conditional handle without a node");
    conditions[handle] = condition;
  }
  params->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
  *out = next_handle<CUgraphExec>();
  w.execs[*out] = {graph, clone(graph, nullptr), conditions};
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphExecDestroy(CUgraphExec exec) {
  ENTER;
  if (!find(exec)) return unknown("exec");
  if (find(exec) == world().running) return refuse("an exec is destroyed while it runs");
  destroy(find(exec)->graph);
  world().execs.erase(exec);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) {
  ENTER;
  if (!find(exec)) return unknown("exec");
  log("upload on " + std::to_string(reinterpret_cast<uint64_t>(stream)));
  return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
  ENTER;
  World& w = world();
  if (!find(exec)) return unknown("exec");
  if (w.running) return refuse("a launch inside a launch");
  if (!w.context) return refuse("no context", CUDA_ERROR_INVALID_CONTEXT);
  log("launch on " + std::to_string(reinterpret_cast<uint64_t>(stream)));
  ++w.launches;
  w.running = find(exec);
  const std::map<CUgraphConditionalHandle, Condition> defaults = w.running->conditions;
  const CUresult result = run(w.running->graph);
  w.running->conditions = defaults;
  w.running = nullptr;
  return result;
}

// None is missing, and each has the arguments it is called with.
#define SAME(name, arguments) \
  static_assert(std::is_same_v<decltype(&::name), decltype(ak::Driver::name)>);
AK_DRIVER_FUNCTIONS(SAME)
