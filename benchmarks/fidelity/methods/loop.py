"""A plain loop over a solver's table in which a rule says who calls the network at which step.

    h_i     = p_i x_i + q_i m_i
    x_{i+1} = A_i x_i + sum_{k=0..K-1} C_{i,k} h_{i-k}

m_i is the guided model output of the samples that call, the rule's own fill for the others. The
arithmetic is float32, without a kernel; everything that happened stays visible to the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_kernels.sampling.network import NetworkCall
from adaptive_kernels.solvers.levels import NoiseLevels
from adaptive_kernels.solvers.table import SolverTable

from ..method import Outcome
from ..problem import Batch, Problem

# Where alpha = 0 an eps output says nothing of x0; such quotients are held finite.
SMALLEST = 1e-6


@dataclass
class Trace:
    """What has happened so far in a run of B samples of N elements."""

    table: SolverTable
    x: list[Tensor]  # x_0 .. x_i, each [B, N] float32
    m: list[Tensor]  # m_0 .. m_{i-1}, each [B, N] float32: computed or filled
    computed: Tensor  # [T, B] bool
    score: Tensor  # [T, B] float64: left over right side of the rule, NaN where none

    @property
    def steps(self) -> int:
        return self.table.num_steps

    def levels(self) -> NoiseLevels:
        if self.table.levels is None:
            raise ValueError(f"the table must know its noise levels, got {self.table}")
        return self.table.levels

    def level(self, i: int) -> tuple[float, float]:
        """alpha and sigma of x_i = alpha x0 + sigma eps; i = T is the result."""
        return self.levels().alpha[i].item(), self.levels().sigma[i].item()

    def vp_level(self, i: int) -> tuple[float, float, float]:
        """alpha / r, sigma / r and r = hypot(alpha, sigma): x_i / r is that of a VP process."""
        alpha, sigma = self.level(i)
        r = math.hypot(alpha, sigma)
        return alpha / r, sigma / r, r

    def network_input(self, i: int) -> Tensor:
        return self.table.input_scale[i].item() * self.x[i]

    def x0(self, i: int) -> Tensor:
        """The clean sample that m_i predicts at x_i: x = alpha x0 + sigma eps, m = a x0 + b eps."""
        alpha, sigma, a, b = self._row(i)
        return (b * self.x[i] - sigma * self.m[i]) / _nonzero(alpha * b - sigma * a)

    def eps(self, i: int) -> Tensor:
        """The noise that m_i predicts at x_i."""
        alpha, sigma, a, b = self._row(i)
        return (alpha * self.m[i] - a * self.x[i]) / _nonzero(alpha * b - sigma * a)

    def output(self, i: int, x0: Tensor) -> Tensor:
        """The model output that predicts x0 at x_i."""
        alpha, sigma, a, b = self._row(i)
        return a * x0 + b * (self.x[i] - alpha * x0) / _nonzero(sigma)

    def lagrange_x0(self, i: int, nodes: list[int]) -> Tensor:
        """The polynomial in the step's number through the x0 of the steps `nodes`, at step i."""
        total = torch.zeros_like(self.x[i])
        for j in nodes:
            total += math.prod((i - n) / (j - n) for n in nodes if n != j) * self.x0(j)
        return total

    def _row(self, i: int) -> tuple[float, float, float, float]:
        levels = self.levels()
        return *self.level(i), levels.a[i].item(), levels.b[i].item()


class SkipRule:
    """Who calls the network, and what stands for its output elsewhere: one object for one run.

    This one always calls.
    """

    updates = True  # False: a sample that does not call keeps its latents as they are, too
    trace: Trace

    def begin(self, problem: Problem, trace: Trace) -> None:
        self.trace = trace

    def calls(self, i: int) -> Tensor:
        """[B] bool, before step i; asked once per step, in order."""
        return self.everyone(True)

    def fill(self, i: int) -> Tensor:
        """[B, N] float32, read at the samples that do not call at step i."""
        return self.trace.m[i - 1]

    def everyone(self, value: bool) -> Tensor:
        return torch.full((self.trace.computed.shape[1],), value)


class SkipUpdate(SkipRule):
    """One call in k, and at the other steps nothing at all: the latents stay as they are.

    Source: the ablation in figure 3 of AdaptiveDiffusion, arXiv 2410.09873.
    """

    updates = False

    def __init__(self, period: float) -> None:
        self.period = int(period)

    def calls(self, i: int) -> Tensor:
        return self.everyone(i % self.period == 0)


def guided_network(problem: Problem, batch: Batch) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(model_input [B, N], timestep [B], rows [b] int64) -> mu + g (mc - mu) of the rows, [b, N].

    A guidance scale of 1 calls the conditional half alone, as the sampler does.
    """
    guided = problem.guidance_scale not in (None, 1.0)
    network = NetworkCall(
        problem.model,
        batch.noise.shape,
        guided,
        batch.conditioning,
        batch.unconditional if guided else None,
        True,
        batch.noise.device,
    )

    def call(model_input: Tensor, timestep: Tensor, rows: Tensor) -> Tensor:
        if not guided:
            return network(model_input, timestep, rows).float()
        twice = network(model_input.repeat(2, 1), timestep.repeat(2), rows).float()
        unconditional, conditional = twice.chunk(2)
        return unconditional + problem.guidance_scale * (conditional - unconditional)

    return call


@torch.no_grad()
def run(problem: Problem, batch: Batch, rule: SkipRule) -> Outcome:
    """Sample a batch, calling the network where the rule says so.

    Where a rule skips the update too, x_{i+1} = x_i and the solver's history of h stays as it is.

    Raises:
        ValueError: the solver adds noise.
    """
    table = problem.table()
    if bool(table.S.any()):
        raise ValueError(f"the solver must be deterministic, got S up to {table.S.abs().max()}")
    x = batch.noise.flatten(1).float() * table.init_noise_sigma
    steps, samples = table.num_steps, len(x)
    trace = Trace(
        table,
        [x],
        [],
        torch.zeros(steps, samples, dtype=torch.bool),
        torch.full((steps, samples), torch.nan, dtype=torch.float64),
    )
    network = guided_network(problem, batch)
    timesteps = table.timesteps if table.timesteps.dtype == torch.int64 else table.timesteps.float()
    rule.begin(problem, trace)
    kept: list[Tensor] = []
    for i in range(steps):
        calls = rule.calls(i)
        rows = calls.nonzero()[:, 0]
        trace.computed[i] = calls
        m = torch.empty_like(x) if len(rows) == samples else rule.fill(i).clone()
        if len(rows):
            m[rows] = network(trace.network_input(i), timesteps[i].expand(samples), rows)
        trace.m.append(m)
        h = table.p[i].item() * x + table.q[i].item() * m
        # Before there are K of them the oldest h stands for the missing: its weight is then 0.
        shifted = [h, *kept[: table.history - 1]] if kept else [h] * table.history
        following = table.A[i].item() * x
        for weight, past in zip(table.C[i].tolist(), shifted, strict=True):
            following = following + weight * past
        if not rule.updates and kept:
            frozen = ~calls[:, None]
            following = torch.where(frozen, x, following)
            shifted = [torch.where(frozen, *pair) for pair in zip(kept, shifted, strict=True)]
        x, kept = following, shifted
        trace.x.append(x)
    return Outcome(
        x.view(batch.noise.shape), trace.computed.sum(0).double(), trace.computed, trace.score
    )


def around(nfe: Callable[[int], float], candidates: Iterable[int], budget: float) -> list[float]:
    """The settings whose NFE is next to a budget: above (or on) it and below it."""
    costs = {c: nfe(c) for c in candidates}
    above = [c for c in costs if costs[c] >= budget]
    below = [c for c in costs if costs[c] < budget]
    found = [min(above, key=costs.get)] if above else []
    if below and not (found and costs[found[0]] == budget):
        found.append(max(below, key=costs.get))
    return [float(c) for c in found]


def scaled(steps: int, *of_fifty: int) -> tuple[int, ...]:
    """Numbers of steps given for 50, in proportion."""
    return tuple(round(n * steps / 50) for n in of_fifty)


def _nonzero(value: float) -> float:
    return value if abs(value) > SMALLEST else math.copysign(SMALLEST, value)
