// CUDA `step` and `advance`: from tensors to launches on their device's current stream.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/advance_launch.h"
#include "op/registration.h"

namespace ak {
namespace {

void expect_cuda(const Tensors& t) {
  const int64_t device = t.latents.get_device_index();
  STD_TORCH_CHECK(t.latents.is_cuda(), "latents must be on the CUDA device of the others");
  for_each_tensor(t, [&](const Tensor& tensor, const char* name, bool) {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, name,
                    " must be on cuda:", device, " as latents is");
  });
}

template <typename Launch>
void on_device(const Tensors& t, const Rule& rule, const Condition& condition, const char* name,
               Launch launch) {
  expect_cuda(t);
  STD_TORCH_CHECK(t.workspace, "workspace must be given on a GPU");
  const Args a = check(t, rule, condition);
  if (a.B == 0) return;
  const int32_t device = t.latents.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const cudaError_t error = launch(a, static_cast<cudaStream_t>(stream));
  STD_TORCH_CHECK(error == cudaSuccess, name, " did not launch: ", cudaGetErrorString(error));
}

void step_cuda(const Tensors& t, const Rule& rule, const Condition& condition, bool fresh) {
  on_device(t, rule, condition, "step",
            [&](const Args& a, cudaStream_t stream) { return launch_step(a, fresh, stream); });
}

void advance_cuda(const Tensors& t, const Rule& rule, const Condition& condition) {
  on_device(t, rule, condition, "advance", launch_advance);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaptive_kernels, CUDA, m) {
  m.impl("step", TORCH_BOX(&step<step_cuda>));
  m.impl("advance", TORCH_BOX(&advance<advance_cuda>));
}

}  // namespace ak
