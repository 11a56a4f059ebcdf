"""The ways to make one step that bench_step.py compares: `call()` makes it, `result()` tells it."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adaptive_kernels import ops
from benchmarks.ops.cpu.cases import (
    GUIDANCE,
    MIDDLE,
    Case,
    clone,
    costs,
    kept,
    problem,
    scheduler,
    slot,
    weights,
)


class Result(NamedTuple):
    x_next: Tensor  # [B, N]
    model_input: Tensor  # [B or 2B, N]
    refresh: Tensor  # [B] or [] bool: whether the next step calls the network
    output: Tensor | None = None  # [B, N]: what a refresh under `defect` keeps
    defect: Tensor | None = None  # [B] or []: its rms defect times the spread


class Step:
    """The op."""

    def __init__(self, case: Case):
        self.case, self.state = case, clone(problem(case))
        # A step writes ring slots that it does not read: with the counters back, it repeats.
        self.counters, self.before = self.state.progress.numpy(), problem(case).progress.numpy()
        self.arguments = (*self.state.arguments(), True)

    def __call__(self) -> None:
        self.counters[:] = self.before
        ops.step(*self.arguments)

    def result(self) -> Result:
        state = self.state
        done = Result(slot(state, 0), state.model_input, state.refreshed[MIDDLE + 1])
        if not self.case.filled or self.case.skipped:
            return done
        return done._replace(output=kept(self.case, state, 0), defect=state.norms[:, 0])


class Eager:
    """The released code's way: diffusers' scheduler, lists of the past, decisions in Python.

    It decides for the whole batch.
    """

    def __init__(self, case: Case):
        state = problem(case)
        self.case, self.scheduler = case, scheduler()
        self.threshold, self.max_skip = float(state.threshold[0]), state.rule[1]
        self.timestep, self.next_timestep = self.scheduler.timesteps[MIDDLE : MIDDLE + 2]
        self.output = state.model_output.unflatten(1, case.sizes[1:])

    def guided_output(self) -> Tensor:
        if not self.case.guided:
            return self.output
        unconditional, conditional = self.output.chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)

    def solve(self, output: Tensor, latents: Tensor) -> Tensor:
        return self.scheduler.step(output, self.timestep, latents, return_dict=False)[0]

    def network_input(self, latents: Tensor) -> Tensor:
        made = torch.cat([latents] * 2) if self.case.guided else latents
        made = self.scheduler.scale_model_input(made, self.next_timestep)
        return made.to(self.output.dtype)


class EagerDifferences(Eager):
    """`released`, and the paper's `third_order` in the same style."""

    def __init__(self, case: Case):
        super().__init__(case)
        self.latents = [slot(problem(case), back).view(case.sizes) for back in (3, 2, 1)]
        self.norms = [self.norm(b - a) for a, b in itertools.pairwise(self.latents)]
        self.computed = [True] * (MIDDLE - 4)

    def __call__(self) -> None:
        del self.latents[3:], self.norms[2:], self.computed[MIDDLE - 4 :]
        latents = self.solve(self.guided_output(), self.latents[-1])
        self.computed.append(self.must_compute(latents))
        self.latents.append(latents)
        self.model_input = self.network_input(latents)

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

    def result(self) -> Result:
        refresh = torch.tensor(self.computed[-1])
        return Result(self.latents[-1].flatten(1), self.model_input.flatten(1), refresh)


class EagerDefect(Eager):
    """`defect` in the same style: a list of kept outputs, one `.item()` and a loop per refresh."""

    def __init__(self, case: Case):
        super().__init__(case)
        self.latents = slot(problem(case), 1).view(case.sizes)
        self.outputs = [kept(case, problem(case), back).view(case.sizes) for back in (2, 1)]
        self.fill_0, self.fill_1, _, self.repair, _, _, self.spread = weights(case).tolist()
        self.costs = costs(case).tolist()
        self.defect = float(problem(case).norms[0, 0])
        self.run = self.run_length()

    def __call__(self) -> None:
        del self.outputs[2:]
        older, newer = self.outputs
        output = self.fill_0 * newer + self.fill_1 * older
        if self.case.skipped:
            self.left = self.run - 1
        else:
            # The defect is a small difference of large numbers: float32 from here on.
            computed = self.guided_output().float()
            difference = computed - output
            output = computed + self.repair * difference
            self.outputs.append(computed)
            norm = torch.linalg.vector_norm(difference).item()
            self.defect = self.spread * norm / math.sqrt(difference.numel())
            self.left = self.run_length()
        self.x_next = self.solve(output, self.latents)
        self.model_input = self.network_input(self.x_next)

    def run_length(self) -> int:
        for run, cost in enumerate(self.costs):
            if not self.defect * cost <= self.threshold:
                return run
        return self.max_skip

    def result(self) -> Result:
        refresh = torch.tensor(self.left == 0)
        done = Result(self.x_next.flatten(1), self.model_input.flatten(1), refresh)
        if self.case.skipped:
            return done
        output, defect = self.outputs[-1].flatten(1), torch.tensor(self.defect)
        return done._replace(output=output, defect=defect)


def eager(case: Case) -> Eager:
    return EagerDefect(case) if case.filled else EagerDifferences(case)


def guide(output: Tensor, guidance_scale: Tensor, guided: bool) -> Tensor:
    m = output[0].float()
    return m + guidance_scale * (output[1].float() - m) if guided else m


def move(x_next: Tensor, model_input: Tensor, x: Tensor, m: Tensor, row: Tensor) -> None:
    """The update with output m. DDIM has p = u = 0, q = w = 1 or -1."""
    _, q, A, _, input_scale, _, _, _, _, _, C = row.unbind()
    x_next.copy_(A * x + C * (q * m))
    model_input.copy_(input_scale * x_next)


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
        move(x_next, model_input, x, guide(output, guidance_scale, guided), row)
        if squares:
            third = ((x_next - x_2) - 3 * (x - x_1)).square().sum()
            first = (x_next - x).square().sum()
            return first, ~(third.sqrt() < threshold * first_1.sqrt())
        first = (x_next - x).abs().mean()
        return first, ~(((first + first_2) / 2 - first_1).abs() <= threshold * first_1)

    return function


def whole_refresh(case: Case) -> Callable:
    """`whole_step` for a refresh under `defect`."""
    guided = case.guided

    def function(
        x_next, model_input, own, x, e_0, e_1, output, row, entry, cost, guidance_scale, threshold
    ):
        f_0, f_1, _, repair, _, _, spread = entry.unbind()
        m = guide(output, guidance_scale, guided)
        own.copy_(m)
        difference = m - (f_0 * e_0 + f_1 * e_1)
        move(x_next, model_input, x, m + repair * difference, row)
        defect = difference.square().mean().sqrt() * spread
        return defect, ~(defect * cost <= threshold)

    return function


def whole_skip(x_next, model_input, x, e_0, e_1, row, entry, cost, defect, threshold):
    """`whole_step` for a skipped step under `defect`."""
    f_0, f_1, *_ = entry.unbind()
    move(x_next, model_input, x, f_0 * e_0 + f_1 * e_1, row)
    return None, ~(defect * cost <= threshold)


class Compiled:
    """The same arithmetic as one compiled function."""

    def __init__(self, case: Case):
        state = problem(case)
        # The cache of compiled code is per code object and small.
        torch._dynamo.reset()
        self.rows = state.model_input.shape
        halves = 1 + case.guided
        self.x_next = torch.empty_like(slot(state, 0)).flatten()
        self.model_input = torch.empty_like(state.model_input).view(halves, -1)
        self.output = state.model_output.view(halves, -1)
        self.own = None
        function, arguments = self.filled(case) if case.filled else self.differences(case)
        self.function = torch.compile(function, fullgraph=True, dynamic=False)
        self.arguments = (self.x_next, self.model_input, *arguments)

    def differences(self, case: Case) -> tuple[Callable, tuple]:
        state = problem(case)
        norms = state.norms.sum(0).float()
        if case.criterion == "released":
            norms = norms / self.x_next.numel()
        return whole_step(case), (
            *(slot(state, back).flatten() for back in (1, 2, 3)),
            *(self.output, state.rows[MIDDLE], state.guidance_scale[0]),
            *(norms[0], norms[1], state.threshold[0]),
        )

    def filled(self, case: Case) -> tuple[Callable, tuple]:
        state = problem(case)
        past = [slot(state, 1), *(kept(case, state, back) for back in (1, 2))]
        x, e_0, e_1 = (one.flatten() for one in past)
        row, entry, threshold = state.rows[MIDDLE], weights(case), state.threshold[0]
        if case.skipped:
            cost, defect = costs(case)[1], state.norms[0, 0].float()
            return whole_skip, (x, e_0, e_1, row, entry, cost, defect, threshold)
        self.own, cost = torch.empty_like(x), costs(case)[0]
        scalars = (row, entry, cost, state.guidance_scale[0], threshold)
        return whole_refresh(case), (self.own, x, e_0, e_1, self.output, *scalars)

    def __call__(self) -> None:
        self.norm, self.refresh = self.function(*self.arguments)

    def result(self) -> Result:
        x_next, model_input = self.x_next.view(-1, self.rows[1]), self.model_input.view(self.rows)
        done = Result(x_next, model_input, self.refresh)
        if self.own is None:
            return done
        return done._replace(output=self.own.view_as(x_next), defect=self.norm)


class Memcpy:
    """A copy that reads and writes as many bytes together as the step."""

    def __init__(self, case: Case):
        self.source = torch.rand(case.bytes_moved // 8)
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> None:
        self.target.copy_(self.source)

    def result(self) -> None:
        assert torch.equal(self.target, self.source)


IMPLEMENTATIONS = {"step": Step, "eager": eager, "compiled": Compiled, "memcpy": Memcpy}
