"""The CPU emulation of CUDA: what it computes, which faults it finds, and that it ends."""

import math
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

HEADERS = Path(__file__).parents[2] / "support" / "emulation" / "include"
ORDERS = IN_ORDER, REVERSED, RANDOM = 0, 1, 2
SCHEDULES = [(IN_ORDER, 0), (REVERSED, 0), *((RANDOM, seed) for seed in range(24))]
LAUNCH_FAILURE, TOO_LARGE = 719, 720
# What a launch of 8 blocks of 64 threads is to leave.
SUMS = {
    "tree_sums": [sum(range(192))] * 8,
    "warp_sums": [sum(range(32))] * 512,
    "grid_sum": [sum(range(512))] * 8,
}
MESSAGES = [3.0 * k for k in range(1, 9)]
ROUNDS = [sum(range(5)) * sum(range(8))] * 8

PROGRAM = r"""
#include <cuda_runtime.h>

#include <cstdio>
#include <string>
#include <vector>

using Floats = float[64];
using Totals = double[64];

__global__ void indices(unsigned* times) {
  const dim3 &b = blockDim, &g = gridDim;
  const unsigned thread = threadIdx.x + b.x * (threadIdx.y + b.y * threadIdx.z);
  const unsigned block = blockIdx.x + g.x * (blockIdx.y + g.y * blockIdx.z);
  times[block * b.x * b.y * b.z + thread] += 1;
}

// Sums 64 elements; without = 1, 2, 3 leaves that barrier out.
template <int without>
__device__ double tree(double value) {
  AK_SHARED(Totals, totals);
  totals[threadIdx.x] = value;
  if (without != 1) __syncthreads();
  for (unsigned half = 32; half > 0; half /= 2) {
    if (threadIdx.x < half) totals[threadIdx.x] += totals[threadIdx.x + half];
    if (without != 2) __syncthreads();
  }
  const double sum = totals[0];
  if (without != 3) __syncthreads();
  return sum;
}

template <int without>
__global__ void tree_sums(double* out) {
  double sums = 0;
  for (int i = 0; i < 3; ++i) sums += tree<without>(threadIdx.x + 64 * i);
  if (threadIdx.x == 63) out[blockIdx.x] = sums;
}

__global__ void warp_sums(double* out) {
  const unsigned all = 0xffffffffu, lane = threadIdx.x % 32;
  float sum = lane;
  long long down = lane + (1ll << 40);
  for (int k = 16; k > 0; k /= 2) {
    sum += __shfl_xor_sync(all, sum, k);
    down += __shfl_down_sync(all, down, k);
  }
  bool right = lane > 0 || down == 496 + (1ll << 45);
  right &= __ballot_sync(all, lane % 2) == 0xaaaaaaaau && !__any_sync(all, lane == 32);
  right &= __shfl_sync(all, 0.5 * lane, 31) == 15.5;
  if (lane < 8) right &= __shfl_xor_sync(0xffu, lane, 7) == 7 - lane;  // a part of the warp
  out[blockIdx.x * blockDim.x + threadIdx.x] = right ? sum : -1;
}

// The block that takes the last ticket adds up what the others have written.
template <bool early>
__global__ void grid_sum(double* partial, unsigned* tickets, double* out) {
  AK_SHARED(bool, last);
  const double sum = tree<0>(threadIdx.x + 64.0 * blockIdx.x);
  if (threadIdx.x == 0) {
    if (early) last = atomicAdd(tickets, 1) == gridDim.x - 1;
    partial[blockIdx.x] = sum;
    __threadfence();
    if (!early) last = atomicAdd(tickets, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  const double total = tree<0>(threadIdx.x < gridDim.x ? __ldcg(&partial[threadIdx.x]) : 0);
  if (threadIdx.x < gridDim.x) out[threadIdx.x] = total;
}

__device__ void grid_barrier(unsigned* arrived, volatile unsigned* generation) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned before = *generation;
    __threadfence();
    if (atomicAdd(arrived, 1) == gridDim.x - 1) {
      *arrived = 0;
      __threadfence();
      *generation = before + 1;
    } else {
      while (*generation == before) __nanosleep(20);
    }
    __threadfence();
  }
  __syncthreads();
}

__global__ void rounds(double* slots, unsigned* state, double* out) {
  double sum = 0;
  for (int round = 0; round < 5; ++round) {
    if (threadIdx.x == 0) slots[blockIdx.x] = round * blockIdx.x;
    grid_barrier(state, state + 1);
    for (unsigned b = 0; b < gridDim.x; ++b) sum += slots[b];
    grid_barrier(state, state + 1);
  }
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// The block that waits adds what the others have sent, by relaxed stores. It tells a message by the
// launch's number; `trusts`: by nothing, or by a ticket, with a fence before it or without.
enum Trust { kNumber, kNothing, kTicket, kFencedTicket };
template <Trust trusts>
__global__ void messages(uint64_t* words, unsigned* tickets, uint64_t number, double* out) {
  AK_SHARED(bool, adds);
  if (threadIdx.x == 0) {
    store_relaxed(&words[blockIdx.x], number << 32 | (blockIdx.x + 1));
    if (trusts == kFencedTicket) __threadfence();
    const bool last = trusts >= kTicket && atomicAdd(tickets, 1) == gridDim.x - 1;
    adds = trusts >= kTicket ? last : blockIdx.x == gridDim.x - 1;
    if (last) *tickets = 0;
  }
  __syncthreads();
  if (!adds || threadIdx.x >= gridDim.x) return;
  uint64_t word = load_relaxed(&words[threadIdx.x]);
  while (trusts == kNumber && word >> 32 != number) word = load_relaxed(&words[threadIdx.x]);
  out[threadIdx.x] += static_cast<unsigned>(word);
}

__global__ void diverge(int how) {
  if (how != 1 && threadIdx.x == 5) return;
  if (how == 1 && threadIdx.x == 5) __syncthreads();
  if (how == 2) __shfl_xor_sync(0xffffffffu, 1, 1);
  __syncthreads();
}

__global__ void unwritten(double* out) {
  AK_SHARED(Floats, x);
  out[blockIdx.x * blockDim.x + threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = 1;
}

__global__ void overrun(double* out, size_t n) { out[threadIdx.x == 0 ? n : 0] = 1; }

int main(int, char** argv) {
  const std::string claim = argv[1];
  const auto number = [&](int k) { return std::stoi(argv[k]); };
  emulation::Device& device = emulation::device();
  device.order = static_cast<emulation::Order>(number(2));
  device.seed = number(3);
  device.multiprocessors = number(4);
  device.blocks_per_multiprocessor = number(5);
  const bool one_each = claim == "warp_sums" || claim == "unwritten";
  std::vector<double> out(one_each ? 512 : 8, NAN), slots(8, NAN);
  std::vector<unsigned> state(2);
  double *o = out.data(), *s = slots.data();
  cudaLaunchAttribute cooperative = {cudaLaunchAttributeCooperative, {1}};
  cudaLaunchConfig_t config = {8, 64, 0, nullptr, &cooperative, claim[0] == 'c'};
  const auto launch = [&](const char* name, auto kernel, auto... args) {
    if (claim == name) cudaLaunchKernelEx(&config, kernel, args...);
  };
  launch("tree_sums", tree_sums<0>, o);
  launch("tree_sums 1", tree_sums<1>, o);
  launch("tree_sums 2", tree_sums<2>, o);
  launch("tree_sums 3", tree_sums<3>, o);
  launch("warp_sums", warp_sums, o);
  launch("grid_sum", grid_sum<false>, s, state.data(), o);
  launch("grid_sum early", grid_sum<true>, s, state.data(), o);
  launch("rounds", rounds, s, state.data(), o);
  launch("cooperative rounds", rounds, s, state.data(), o);
  std::vector<uint64_t> words(8);
  uint64_t* w = words.data();
  if (claim.find("messages") != std::string::npos) out.assign(8, 0);
  for (uint64_t number = 1; number <= 3; ++number) {
    launch("cooperative messages", messages<kNumber>, w, state.data(), number, o);
    launch("cooperative messages trusted", messages<kNothing>, w, state.data(), number, o);
    launch("messages by ticket", messages<kTicket>, w, state.data(), number, o);
    launch("messages by fenced ticket", messages<kFencedTicket>, w, state.data(), number, o);
  }
  launch("diverge 0", diverge, 0);
  launch("diverge 1", diverge, 1);
  launch("diverge 2", diverge, 2);
  launch("unwritten", unwritten, o);
  launch("overrun", overrun, o, out.size());
  std::printf("%d\n%s\n", cudaGetLastError(), device.last_failure.c_str());

  // Whatever happened before, this launch runs, every thread of every block once.
  config = {dim3(3, 2, 5), dim3(5, 4, 3), 0, nullptr, nullptr, 0};
  std::vector<unsigned> times(1800);
  cudaLaunchKernelEx(&config, indices, times.data());
  std::printf("%d\n", times == std::vector<unsigned>(1800, 1) && cudaGetLastError() == cudaSuccess);
  for (const double value : out) std::printf("%.17g ", value);
}
"""


class Run(NamedTuple):
    error: int
    failure: str
    values: list


def compiled(folder, *flags):
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    source, program = folder / "claims.cpp", folder / "claims"
    source.write_text(PROGRAM)
    command = ["g++", "-std=c++17", "-O1", *flags, f"-I{HEADERS}", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if flags and "cannot find" in done.stderr:
        pytest.skip("needs g++'s address and undefined-behaviour sanitizers")
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return compiled(tmp_path_factory.mktemp("sanitized"), *flags)


def start(program, claim, order=IN_ORDER, seed=0, size=(4, 2)):
    arguments = [str(program), claim, *(str(number) for number in (order, seed, *size))]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=30)


def run(*args, **kwargs):
    done = start(*args, **kwargs)
    assert done.returncode == 0, done.stderr
    error, failure, indices_right, values = done.stdout.split("\n")
    assert indices_right == "1"
    return Run(int(error), failure, [float(value) for value in values.split()])


@pytest.mark.parametrize("size", [(4, 2), (1, 1), (3, 1), (16, 2)])
@pytest.mark.parametrize("claim", SUMS)
def test_sums_are_right_in_every_order(program, claim, size):
    for schedule in SCHEDULES:
        done = run(program, claim, *schedule, size)
        assert done.error == 0 and done.values == SUMS[claim], (schedule, done)


def test_a_grid_barrier_holds_in_every_order(program):
    for schedule in SCHEDULES:
        done = run(program, "cooperative rounds", *schedule)
        assert done.error == 0 and done.values == ROUNDS, (schedule, done)


@pytest.mark.parametrize("claim", ["cooperative messages", "messages by fenced ticket"])
def test_messages_arrive_in_every_order(program, claim):
    for schedule in SCHEDULES:
        done = run(program, claim, *schedule)
        assert done.error == 0 and done.values == MESSAGES, (schedule, done)


@pytest.mark.parametrize("claim", ["cooperative messages trusted", "messages by ticket"])
def test_a_message_read_before_it_came_gives_a_wrong_sum(program, claim):
    """A relaxed store is seen late; neither the order of blocks nor a ticket says it is there."""
    runs = [run(program, claim, RANDOM, seed) for seed in range(24)]
    assert not all(done.values == MESSAGES for done in runs)


@pytest.mark.parametrize("order", ORDERS)
def test_a_grid_barrier_without_room_is_reported(program, order):
    done = run(program, "rounds", order, size=(3, 1))
    assert done.error == LAUNCH_FAILURE
    assert done.failure.startswith("deadlock") and "not started: 5 blocks" in done.failure
    assert run(program, "cooperative rounds", order, size=(7, 1)).error == TOO_LARGE


@pytest.mark.parametrize(
    "claim, fault", [("tree_sums", 1), ("tree_sums", 2), ("tree_sums", 3), ("grid_sum", "early")]
)
def test_a_missing_barrier_or_an_early_ticket_gives_a_wrong_sum(program, claim, fault):
    runs = [run(program, f"{claim} {fault}", RANDOM, seed) for seed in range(24)]
    assert not all(done.values == SUMS[claim] for done in runs)


@pytest.mark.parametrize("order", ORDERS)
def test_divergence_is_reported(program, order):
    reports = ["that never come", "different barriers", "at __shfl_xor_sync"]
    for how, report in enumerate(reports):
        done = run(program, f"diverge {how}", order, seed=3)
        assert done.error == LAUNCH_FAILURE and report in done.failure


def test_shared_memory_is_nan_at_the_start_of_every_block(program):
    assert all(math.isnan(value) for value in run(program, "unwritten", size=(1, 1)).values)


@pytest.mark.parametrize("claim", [*SUMS, "rounds", "diverge 0", "diverge 2"])
def test_fibers_run_clean_under_the_sanitizers(sanitized, claim):
    for order in ORDERS:
        done = run(sanitized, claim, order)
        assert claim not in SUMS or done.values == SUMS[claim]


def test_the_sanitizer_sees_past_the_end_of_an_array(sanitized):
    done = start(sanitized, "overrun")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
