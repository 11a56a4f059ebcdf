// CUDA `step` and `advance`: the plain version, correct first.
//
// Computes: what step_cpu.cpp computes, one launch per solver step.
// Work: one block per sample (one for the batch where it decides together), threads stride over
// its elements; sums are double, per thread in element order and then over a fixed tree, so they
// are bitwise the same every run. Thread 0 decides.
// Bytes per element: as step_cpu.cpp.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "convert.h"
#include "fill.h"
#include "noise.h"
#include "step_ops.h"

namespace ak {
namespace {

constexpr int kThreads = 1024;

__device__ float load_as(const void* from, ScalarType type, int64_t at) {
  if (type == ScalarType::Float) return load(static_cast<const float*>(from)[at]);
  if (type == ScalarType::Half) return load(static_cast<const Half*>(from)[at]);
  return load(static_cast<const BFloat16*>(from)[at]);
}

__device__ void store_as(float value, void* to, ScalarType type, int64_t at) {
  if (type == ScalarType::Float)
    store(value, static_cast<float*>(to) + at);
  else if (type == ScalarType::Half)
    store(value, static_cast<Half*>(to) + at);
  else
    store(value, static_cast<BFloat16*>(to) + at);
}

__device__ double block_sum(double value, double* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const double sum = shared[0];
  __syncthreads();
  return sum;
}

__device__ float noise_at(const Args& a, int64_t b, int64_t step, int64_t n) {
  if (a.noise) return a.noise[(step * a.B + b) * a.N + n];
  float z[4];
  normal4(static_cast<uint64_t>(a.seed[b]), static_cast<uint64_t>(n / 4),
          static_cast<uint32_t>(step), z);
  return z[n % 4];
}

// What a sample's outputs are to a step: E_0, E_1, E_2, and where a refresh leaves its own.
struct Fill {
  Weights weights;
  int64_t kept;
  const float* old[kOutputs];
  float* output;
};

__device__ Fill fill_at(const Args& a, int64_t b, int64_t step) {
  Fill fill = {};
  if (!a.outputs) return fill;
  fill.weights = weights_at(a, b, step);
  fill.kept = a.nfe[b] < kOutputs ? a.nfe[b] : kOutputs;
  for (int64_t k = 0; k < fill.kept; ++k)
    fill.old[k] = a.outputs + ((a.nfe[b] - 1 - k) % kOutputs * a.B + b) * a.N;
  fill.output = a.outputs + (a.nfe[b] % kOutputs * a.B + b) * a.N;
  return fill;
}

__device__ float filled(const Fill& fill, int64_t n) {
  float sum = 0.0f;
  for (int64_t k = 0; k < fill.kept; ++k)
    if (fill.weights.f[k] != 0.0f) sum += fill.weights.f[k] * fill.old[k][n];
  return sum;
}

// The fill's part of a refresh: the defect, what is kept, and the repair of h.
__device__ float repaired(const Args& a, const Fill& fill, const Row& row, int64_t n, float x,
                          float m, float h, bool measure, double* defect) {
  const float e = kept_output(row, x, m);
  if (measure) {
    const float d = e - filled(fill, n);
    *defect += static_cast<double>(d * d);
  }
  const float* r = fill.weights.r;
  if (r[0] != 0.0f || r[1] != 0.0f || r[2] != 0.0f) {
    float sum = r[0] * e;
    for (int64_t k = 1; k < kOutputs && k <= fill.kept; ++k) sum += r[k] * fill.old[k - 1][n];
    h += row.qs * sum;
  }
  fill.output[n] = e;
  return h;
}

// Updates one sample and adds this thread's share of its sums.
__device__ void sweep(const Args& a, int64_t b, int64_t step, double* third, double* first,
                      double* defect) {
  const Row row = row_at(a.rows, a.width, step);
  const int64_t next = step + 1, stages = a.rule.stages, depth = a.K - 1;
  const bool boundary = next % stages == 0;
  const bool wants_first = boundary && needs_first(a.rule.criterion);
  const bool wants_third = boundary && needs_third(a.rule.criterion) && next >= 3 * stages;
  const bool squares = a.rule.criterion == kThirdOrder;
  const int64_t lags = a.K < next ? a.K : next;
  const auto ring = [&](int64_t s) { return a.latents + (slot(s, a.R) * a.B + b) * a.N; };
  const auto kept = [&](int64_t s) { return a.history + (slot(s, depth) * a.B + b) * a.N; };

  const bool fresh = a.run[b] == 0;
  const bool measure = boundary && fresh && needs_defect(a.rule.criterion);
  const Fill fill = fill_at(a, b, step);

  for (int64_t n = threadIdx.x; n < a.N; n += kThreads) {
    const float x = ring(step)[n];
    float h;
    if (a.outputs && !fresh) {
      h = row.ps * x + row.qs * filled(fill, n);
    } else {
      float m = load_as(a.model_output, a.output_type, b * a.N + n);
      if (a.guided)
        m = guide(m, load_as(a.model_output, a.output_type, (a.B + b) * a.N + n),
                  a.guidance_scale[b]);
      h = keep(row, x, m);
      if (a.outputs) h = repaired(a, fill, row, n, x, m, h, measure, defect);
    }
    float x_next = update(row, x, h);
    for (int64_t k = 1; k < lags; ++k) x_next += row.C[k] * kept(step - k)[n];
    if (depth > 0) kept(step)[n] = h;
    if (row.S != 0.0f) x_next += row.S * noise_at(a, b, step, n);
    if (wants_first) {
      const float back = ring(next - stages)[n];
      const float d = x_next - back;
      *first += squares ? static_cast<double>(d * d) : static_cast<double>(fabsf(d));
      if (wants_third) {
        const float e =
            third_difference(x_next, back, ring(next - 2 * stages)[n], ring(next - 3 * stages)[n]);
        *third += static_cast<double>(e * e);
      }
    }
    ring(next)[n] = x_next;
    if (next == a.T) continue;
    const float input = row.input_scale * x_next;
    store_as(input, a.model_input, a.input_type, b * a.N + n);
    if (a.guided) store_as(input, a.model_input, a.input_type, (a.B + b) * a.N + n);
  }
}

__device__ bool moves(const Args& a, int64_t b, bool fresh) {
  return is_progress(a, b) && a.index[b] < a.T && (a.run[b] > 0 || fresh);
}

// Thread 0: writes a sample's decision and moves it to its next step.
__device__ void conclude(const Args& a, int64_t b, Sums sums) {
  const int64_t step = a.index[b], next = step + 1;
  if (a.run[b] == 0) {
    if (next % a.rule.stages == 0 && needs_defect(a.rule.criterion))
      a.norms[2 * b] = sqrt(sums.defect / sums.elements) * weights_at(a, b, step).spread;
    count_refresh(a, b);
  }
  a.run[b] += 1;
  a.index[b] = static_cast<int32_t>(next);
  if (next == a.T) {
    a.run[b] = 0;
    return;
  }
  sums.predicted = predict(a, b, next, (a.run[b] - 1) / a.rule.stages + 1);
  const Decision decision = decide(a.rule, step, a.run[b], sums, a.threshold[b]);
  a.refreshed[next * a.B + b] = decision.refresh;
  a.score[next * a.B + b] = decision.score;
  if (decision.refresh) a.run[b] = 0;
  set_timestep(a, b, row_at(a.rows, a.width, step).timestep);
}

__global__ void __launch_bounds__(kThreads) step_kernel(const Args a, const bool fresh) {
  __shared__ double shared[kThreads];
  const int64_t from = a.batch_wide ? 0 : blockIdx.x;
  const int64_t to = a.batch_wide ? a.B : from + 1;
  Sums all = {};
  for (int64_t b = from; b < to; ++b) {
    if (!moves(a, b, fresh)) continue;
    const int64_t next = a.index[b] + 1;
    double third = 0, first = 0, defect = 0;
    sweep(a, b, next - 1, &third, &first, &defect);
    third = block_sum(third, shared);
    first = block_sum(first, shared);
    all.third += third;
    all.defect += block_sum(defect, shared);
    all.first += first;
    all.first_1 += a.norms[2 * b];
    all.first_2 += a.norms[2 * b + 1];
    all.elements += static_cast<double>(a.N);
    __syncthreads();
    if (threadIdx.x == 0 && next % a.rule.stages == 0 && needs_first(a.rule.criterion)) {
      a.norms[2 * b + 1] = a.norms[2 * b];
      a.norms[2 * b] = first;
    }
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int64_t b = from; b < to; ++b)
    if (moves(a, b, fresh)) conclude(a, b, all);
}

void expect_cuda(const Tensors& t) {
  const int64_t device = t.latents.get_device_index();
  STD_TORCH_CHECK(t.latents.is_cuda(), "latents must be on the CUDA device of the others");
  const auto check = [&](const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, name,
                    " must be on cuda:", device, " as latents is");
  };
  check(t.history, "history");
  check(t.model_input, "model_input");
  check(t.timestep, "timestep");
  check(t.progress, "progress");
  check(t.norms, "norms");
  check(t.refreshed, "refreshed");
  check(t.score, "score");
  check(t.model_output, "model_output");
  check(t.guidance_scale, "guidance_scale");
  check(t.threshold, "threshold");
  check(t.rows, "rows");
  check(t.seed, "seed");
  if (t.outputs) check(*t.outputs, "outputs");
  if (t.weights) check(*t.weights, "weights");
  if (t.run_cost) check(*t.run_cost, "run_cost");
  if (t.noise) check(*t.noise, "noise");
}

void launch(const Tensors& t, const Rule& rule, bool batch_wide, bool fresh, int64_t launches) {
  expect_cuda(t);
  const Args a = check(t, rule, batch_wide);
  if (a.B == 0) return;
  const int32_t device = t.latents.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const unsigned blocks = batch_wide ? 1u : static_cast<unsigned>(a.B);
  for (int64_t k = 0; k < launches; ++k) {
    step_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, fresh && k == 0);
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "step did not launch: ", cudaGetErrorString(error));
  }
}

void step_cuda(const Tensors& t, const Rule& rule, bool batch_wide, bool fresh) {
  launch(t, rule, batch_wide, fresh, 1);
}

void advance_cuda(const Tensors& t, const Rule& rule, bool batch_wide) {
  launch(t, rule, batch_wide, true, longest_run(rule, t.rows.size(0)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaptive_kernels, CUDA, m) {
  m.impl("step", TORCH_BOX(&step<step_cuda>));
  m.impl("advance", TORCH_BOX(&advance<advance_cuda>));
}

}  // namespace ak
