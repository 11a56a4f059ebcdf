"""`step` on the CPU against the same step in eager torch, under torch.compile, and a memcpy.

    python -m pytest benchmarks/bench_step.py --benchmark-only --benchmark-json=bench/step.json

One step from the middle of a 50-step DDIM sampling, on a fresh network output. All implementations
of a case are checked against `reference`, then timed in turns, so that a busy stretch of the
machine meets all of them; conftest.py adds the ratios between them to the JSON. A run on a quiet
machine becomes the stored one as a copy in benchmarks/results/step-cpu.json.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import pytest
import torch
from torch import Tensor

from adaptive_kernels import ops, reference
from adaptive_kernels.config import AdaptiveConfig
from adaptive_kernels.schedule import SolverTable
from adaptive_kernels.state import State

STEPS, MIDDLE = 50, 25
GUIDANCE = 5.0
SHAPES = ("1x4x64x64", "1x4x128x128", "16x4x128x128", "1x16x21x60x104")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CRITERIA = ("third_order", "released")
GUIDED_SHAPE = "1x4x128x128"


@dataclass(frozen=True)
class Case:
    shape: str
    dtype: str  # of the network's input and output
    criterion: str
    guided: bool

    def __str__(self) -> str:
        guided = "-guided" if self.guided else ""
        return f"{self.shape}-{self.dtype}-{self.criterion}{guided}"

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(int, self.shape.split("x")))

    @property
    def bytes_moved(self) -> int:
        """Bytes a step must read and write; per-sample scalars are not counted."""
        latents = 4 * (3 if self.criterion == "third_order" else 1) + 4
        terms = problem(self).rows.shape[1] - reference.SCALARS
        history = 4 * terms if terms > 1 else 0
        network = DTYPES[self.dtype].itemsize * 2 * (2 if self.guided else 1)
        return torch.Size(self.sizes).numel() * (latents + history + network)


CASES = [
    Case(shape, dtype, criterion, guided)
    for guided in (False, True)
    for shape, dtype, criterion in itertools.product(SHAPES, DTYPES, CRITERIA)
    if shape == GUIDED_SHAPE or not guided
]


def scheduler() -> diffusers.DDIMScheduler:
    made = diffusers.DDIMScheduler(clip_sample=False)
    made.set_timesteps(STEPS)
    return made


@functools.lru_cache(maxsize=1)
def problem(case: Case) -> State:
    """The state before step `MIDDLE`, its network output written; never mutated."""
    table = SolverTable.from_scheduler(scheduler(), STEPS)
    noise = torch.randn(case.sizes, generator=torch.Generator().manual_seed(0))
    scale = torch.full((case.sizes[0],), GUIDANCE) if case.guided else None
    config = AdaptiveConfig(criterion=case.criterion)
    state = State.begin(table, noise, config, guidance_scale=scale, dtype=DTYPES[case.dtype])
    wave = torch.linspace(0, 60, state.model_output[0].numel()).sin()
    for i in range(MIDDLE + 1):
        # Outputs bend slowly, as a network's do: scores are finite and not a tie.
        state.model_output.copy_((0.7 + 1e-4 * i * i) * wave)
        state.model_output[: case.sizes[0]] *= 0.95
        if i < MIDDLE:
            state.step(fresh=True)
    state.progress[1] = 0
    return state


def clone(state: State) -> State:
    values = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(state).items()}
    return State(**values)


def slot(state: State, back: int) -> Tensor:
    """[B, N]: the latents `back` steps before the one that step `MIDDLE` writes."""
    return state.latents[(MIDDLE + 1 - back) % state.latents.shape[0]]


class Step:
    """The op."""

    def __init__(self, case: Case):
        self.state = clone(problem(case))
        # A step writes a ring slot that it does not read: with the counters back, it repeats.
        self.counters, self.before = self.state.progress.numpy(), problem(case).progress.numpy()
        self.arguments = (*self.state.arguments(), True)

    def __call__(self) -> None:
        self.counters[:] = self.before
        ops.step(*self.arguments)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        refresh = self.state.refreshed[MIDDLE + 1]
        return slot(self.state, 0), self.state.model_input, refresh


class Eager:
    """The released code's way, with diffusers' scheduler: lists of the past, a Python `if`.

    It decides for the whole batch. Its `third_order` is the paper's rule in the same style.
    """

    def __init__(self, case: Case):
        state = problem(case)
        self.case, self.scheduler = case, scheduler()
        self.threshold, self.max_skip = float(state.threshold[0]), state.rule[1]
        self.timestep, self.next_timestep = self.scheduler.timesteps[MIDDLE : MIDDLE + 2]
        self.output = state.model_output.unflatten(1, case.sizes[1:])
        self.latents = [slot(state, back).view(case.sizes) for back in (3, 2, 1)]
        self.norms = [self.norm(b - a) for a, b in itertools.pairwise(self.latents)]
        self.computed = [True] * (MIDDLE - 4)

    def __call__(self) -> None:
        del self.latents[3:], self.norms[2:], self.computed[MIDDLE - 4 :]
        output = self.output
        if self.case.guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + GUIDANCE * (conditional - unconditional)
        latents = self.scheduler.step(output, self.timestep, self.latents[-1], return_dict=False)[0]
        self.computed.append(self.must_compute(latents))
        self.latents.append(latents)
        network_input = torch.cat([latents] * 2) if self.case.guided else latents
        network_input = self.scheduler.scale_model_input(network_input, self.next_timestep)
        self.network_input = network_input.to(self.output.dtype)

    def norm(self, difference: Tensor) -> Tensor:
        if self.case.criterion == "third_order":
            return torch.linalg.vector_norm(difference)
        return difference.abs().mean()

    def must_compute(self, latents: Tensor) -> bool:
        self.norms.append(self.norm(latents - self.latents[-1]))
        before_last, last, this = self.norms[-3:]
        if len(self.computed) > 4 and not any(self.computed[-self.max_skip :]):
            return True
        if self.case.criterion == "third_order":
            x2, x1, x0 = self.latents[-3:]
            third = torch.linalg.vector_norm(latents - 3 * x0 + 3 * x1 - x2)
            if third < self.threshold * last:
                return False
        elif abs((this + before_last) / 2 - last) <= last * self.threshold:
            return False
        return True

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.network_input.flatten(1)
        return self.latents[-1].flatten(1), rows, torch.tensor(self.computed[-1])


def whole_step(case: Case) -> Callable:
    """The step as one function of flat tensors for torch.compile, its decision kept a tensor.

    Of the ways to write it this is the fastest at large sizes: it decides for the whole batch, so
    that the compiler can sum along with the update, and writes into given tensors, since making
    new ones of this size costs as much again.
    """
    guided, squares = case.guided, case.criterion == "third_order"

    def function(
        x_next, model_input, x, x_1, x_2, output, row, guidance_scale, first_1, first_2, threshold
    ):
        m = output[0].float()
        if guided:
            m = m + guidance_scale * (output[1].float() - m)
        _, q, A, _, input_scale, _, C = row.unbind()
        x_next.copy_(A * x + C * (q * m))
        model_input.copy_(input_scale * x_next)
        if squares:
            third = ((x_next - x_2) - 3 * (x - x_1)).square().sum()
            first = (x_next - x).square().sum()
            return first, ~(third.sqrt() < threshold * first_1.sqrt())
        first = (x_next - x).abs().mean()
        return first, ~(((first + first_2) / 2 - first_1).abs() <= threshold * first_1)

    return function


class Compiled:
    """The same arithmetic as one compiled function."""

    def __init__(self, case: Case):
        state = problem(case)
        # The cache of compiled code is per code object and small.
        torch._dynamo.reset()
        self.function = torch.compile(whole_step(case), fullgraph=True, dynamic=False)
        self.rows = state.model_input.shape
        halves = 1 + case.guided
        self.x_next = torch.empty_like(slot(state, 0)).flatten()
        self.model_input = torch.empty_like(state.model_input).view(halves, -1)
        norms = state.norms.sum(0).float()
        if case.criterion == "released":
            norms = norms / self.x_next.numel()
        self.arguments = (
            *(self.x_next, self.model_input),
            *(slot(state, back).flatten() for back in (1, 2, 3)),
            *(state.model_output.view(halves, -1), state.rows[MIDDLE]),
            *(state.guidance_scale[0], norms[0], norms[1], state.threshold[0]),
        )

    def __call__(self) -> None:
        self.first, self.refresh = self.function(*self.arguments)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x_next.view(-1, self.rows[1]), self.model_input.view(self.rows), self.refresh


class Memcpy:
    """A copy that reads and writes as many bytes together as the step."""

    def __init__(self, case: Case):
        self.source = torch.rand(case.bytes_moved // 8)
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> None:
        self.target.copy_(self.source)

    def result(self) -> None:
        assert torch.equal(self.target, self.source)


IMPLEMENTATIONS = {"step": Step, "eager": Eager, "compiled": Compiled, "memcpy": Memcpy}


@functools.lru_cache(maxsize=1)
def expected(case: Case) -> tuple[State, State]:
    """The state after the step by `reference`, deciding per sample and for the whole batch."""
    state = problem(case)
    both = []
    for batch_wide in (False, True):
        after = clone(state)
        # The solver adds no noise; this spares `reference` from making it.
        after.noise = torch.zeros(1).expand(STEPS, *after.latents.shape[1:])
        reference.step(*after.arguments()[:-1], batch_wide, True)
        margin = (after.score[MIDDLE + 1] - 1).abs().min()
        assert margin > 0.05, f"the decision is a tie within rounding: {after.score[MIDDLE + 1]}"
        both.append(after)
    return tuple(both)


def bound(case: Case, roundings_in_network_dtype: int) -> Tensor:
    """[B, N] float64: bound on the error of the new latents.

    x_next adds A x and products of the guided output; diffusers adds two of those, of sizes up to
    A |m| and |m|, where the table has their sum. 16 roundings in float32 cover every term.
    """
    state = problem(case)
    m = state.model_output.double().abs()
    if case.guided:
        m = m[: case.sizes[0]] + GUIDANCE * (m[case.sizes[0] :] + m[: case.sizes[0]])
    A = float(state.rows[MIDDLE, 2])
    network = torch.finfo(DTYPES[case.dtype])
    unit = 16 * 2.0**-24 + roundings_in_network_dtype * network.eps / 2
    return unit * (A * slot(state, 1).double().abs() + (1 + A) * m + network.tiny)


def verify(name: str, case: Case, runner: Callable) -> None:
    """Raises AssertionError unless one call of the runner equals `reference`."""
    runner()
    if name == "memcpy":
        return runner.result()
    x_next, model_input, refresh = runner.result()
    per_sample, batch_wide = expected(case)
    right = per_sample if name == "step" else batch_wide
    assert torch.equal(refresh.expand(case.sizes[0]), right.refreshed[MIDDLE + 1]), "decision"
    # Eager torch combines the guidance and scales the output in the network's dtype, as released.
    low = name == "eager" and case.dtype != "float32"
    error = bound(case, 4 if low else 0)
    wrong = (x_next.double() - slot(right, 0).double()).abs() - error
    assert x_next.dtype == torch.float32 and bool((wrong <= 0).all()), f"latents {wrong.max()}"
    scale, network = float(right.rows[MIDDLE, 4]), torch.finfo(DTYPES[case.dtype])
    exact = (scale * slot(right, 0).double()).repeat(1 + case.guided, 1)
    error = (scale * error).repeat(1 + case.guided, 1) + network.eps / 2 * exact.abs() * 1.01
    wrong = (model_input.double() - exact).abs() - error - network.tiny
    assert model_input.dtype == DTYPES[case.dtype], "dtype of the network's input"
    assert bool((wrong <= 0).all()), f"network input {wrong.max()}"


@functools.lru_cache(maxsize=1)
def measure(case: Case, take_turns: Callable) -> dict:
    """Rounds of every implementation whose check passed, the failure of the others."""
    failures, runners = {}, {}
    with torch.no_grad():
        for name, make in IMPLEMENTATIONS.items():
            try:
                runner = make(case)
                verify(name, case, runner)
                runners[name] = runner
            except Exception as error:  # the test of this implementation raises it
                failures[name] = error
        return failures | take_turns(runners)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step(benchmark, replay, take_turns, count_operators, case, implementation):
    rounds = measure(case, take_turns)[implementation]
    if isinstance(rounds, Exception):
        raise rounds
    benchmark.group = str(case)
    benchmark.extra_info.update(
        implementation=implementation,
        shape=case.shape,
        dtype=case.dtype,
        criterion=case.criterion,
        guided=case.guided,
        bytes_moved=case.bytes_moved,
        # torch.compile refuses the mode that counts; its kernels pass by the dispatcher.
        operator_calls=None if implementation == "compiled" else count_operators(rounds.call),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
    )
    replay(rounds)
