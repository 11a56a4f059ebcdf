"""Skipping paths, one for every row of a run: sampling on them, and forecasts of what they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from adaptive_kernels.rules.fills import coordinates, linear_weights
from adaptive_kernels.solvers.table import SolverTable

from ..methods.loop import guided_network
from ..problem import Batch, Problem

FILLS = ("reuse", "linear")
ROWS = 32  # samples per network call: more are no faster on a CPU
# Latents closer than this share of themselves differ by rounding.
SAME = 1e-5

Output = Callable[[int, Tensor, Tensor], Tensor]  # (step, latents [m, D], rows [m]) -> [m, D]


class Trace(NamedTuple):
    """One run of M paths over vectors of D numbers."""

    final: Tensor  # [M, D]
    latents: list[Tensor]  # T of [M, D]: x_0 .. x_{T-1}
    outputs: list[Tensor]  # T of [M, D], zero where the path does not call


class Solver:
    """The sampler's recurrence, every row on a path of its own.

        h_i = p x + q m  where the path calls,  else  ps x + qs (v0 E_0 + v1 E_1 + v2 E_2)
        x_{i+1} = A x + sum_k C_k h_{i-k}

    with E the last outputs, newest first: raw for "reuse", v = (1, 0, 0); in the coordinates of
    `fills` for "linear", with the weights that the op reads. Nothing is repaired.

    Args:
        table: a solver that adds no noise.
        fill: one of FILLS.
        max_skip: largest number of consecutive skips that paths have, at least 0.

    Raises:
        ValueError: fill is another, or "linear" where the table's noise levels are not known.
    """

    def __init__(self, table: SolverTable, fill: str, max_skip: int) -> None:
        if fill not in FILLS:
            raise ValueError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")
        zero, one = torch.zeros_like(table.p), torch.ones_like(table.p)
        self.table, self.kept = table, (zero, one, table.p, table.q)
        self.weights = torch.tensor([1.0, 0, 0], dtype=torch.float64).expand(len(zero), 1, 1, 3)
        if fill == "linear":
            at = coordinates(table)
            self.kept = at.u, at.w, at.ps, at.qs
            size = min(max_skip + 1, table.num_steps)
            self.weights = linear_weights(table, at, size, 1, repair=False)[..., :3]

    def __call__(self, x: Tensor, called: Tensor, output: Output) -> Trace:
        """Run the rows x [M, D], in their dtype, on the paths called [M, T] bool."""
        table, latents, outputs, history = self.table, [], [], []
        old = [torch.zeros_like(x)] * 3
        newest = before = torch.full((len(x),), -1)
        size = self.weights.shape[1]
        for i in range(table.num_steps):
            on, rows = called[:, i], called[:, i].nonzero()[:, 0]
            u, w, ps, qs = (v[i].item() for v in self.kept)
            m = torch.zeros_like(x)
            if len(rows):
                m[rows] = output(i, x[rows], rows)
            gap, previous = ((d.clamp(1, size) - 1) for d in (i - newest, newest - before))
            weight = self.weights[i, gap, previous].to(x.dtype)
            fill = sum(weight[:, k, None] * old[k] for k in range(3) if weight[:, k].any())
            fresh = table.p[i].item() * x + table.q[i].item() * m
            h = torch.where(on[:, None], fresh, ps * x + qs * fill)
            pairs = zip((u * x + w * m, *old[:2]), old, strict=True)
            old = [torch.where(on[:, None], younger, own) for younger, own in pairs]
            before, newest = torch.where(on, newest, before), torch.where(on, i, newest)
            latents.append(x)
            outputs.append(m)
            history = [h, *history[: table.history - 1]]
            x = table.A[i].item() * x
            for factor, past in zip(table.C[i].tolist(), history, strict=False):
                x = x + factor * past
        return Trace(x, latents, outputs)


class Outputs:
    """The guided network on samples of a batch, called once for what a sample has skipped so far.

    Paths of a sample that agree up to a step have the same latents there, and share the output.
    """

    def __init__(self, problem: Problem, batch: Batch, table: SolverTable) -> None:
        self.problem, self.batch, self.table = problem, batch, table
        self.calls = 0  # of the network, a sample and a step each
        self.older, self.known = {}, {}

    def along(self, called: Tensor, samples: Tensor) -> Output:
        """The outputs on paths [M, T] of the samples [M]."""
        numbers, paths = samples.tolist(), called.numpy()

        def output(i: int, x: Tensor, rows: Tensor) -> Tensor:
            skips = np.packbits(paths[rows.numpy(), :i], axis=1)
            keys = [(i, numbers[r], s.tobytes()) for r, s in zip(rows.tolist(), skips, strict=True)]
            new = {}
            for row, key in enumerate(keys):
                if key in self.older:
                    self.known[key] = self.older[key]
                elif key not in self.known:
                    new.setdefault(key, row)
            for part in torch.tensor([*new.values()], dtype=torch.int64).split(ROWS):
                found = self._network(i, x[part], samples[rows[part]]) if len(part) else ()
                self.known.update((keys[r], m) for r, m in zip(part.tolist(), found, strict=True))
            return torch.stack([self.known[key] for key in keys])

        return output

    def forget(self) -> None:
        """Drop what was not used since the last time."""
        self.older, self.known = self.known, {}

    def _network(self, i: int, x: Tensor, samples: Tensor) -> Tensor:
        self.calls += len(x)
        own = (self.batch.noise, self.batch.conditioning, self.batch.unconditional)
        own = pytree.tree_map(lambda v: v[samples] if isinstance(v, Tensor) else v, own)
        rows = Batch(*own, self.batch.labels[samples], self.batch.seed)
        timestep = self.table.timesteps[i]
        timestep = timestep if timestep.dtype == torch.int64 else timestep.float()
        x = self.table.input_scale[i].item() * x
        return guided_network(self.problem, rows)(x, timestep.expand(len(x)), torch.arange(len(x)))


class Forecast:
    """Final latents of other paths without the network, whose outputs are taken to be affine.

        m_i(x) = m_i' + r_i (x - x_i')

    with m_i' and x_i' of a true run. All latents are then sums of x_0 and the m_i', so paths run
    over the T + 2 weights of these and of a target, and the error is a quadratic form in them.

    Args:
        base: the true run, on the paths called [B, T].
        response: [T, B] float64, r; all 0: the outputs are what they are, whatever the latents.
        target: [B, D], what the final latents are compared with.
    """

    def __init__(
        self, solver: Solver, base: Trace, called: Tensor, response: Tensor, target: Tensor
    ) -> None:
        known = torch.stack((base.latents[0], *base.outputs, target), dim=1).double()
        self.gram = known @ known.mT / known.shape[2]
        self.unit = torch.eye(known.shape[1], dtype=torch.float64)
        self.solver, self.response = solver, response
        own = solver(self._start(called), called, lambda i, x, rows: self.unit[i + 1].expand_as(x))
        self.latents = own.latents

    def errors(self, paths: Tensor, samples: Tensor) -> Tensor:
        """[M] float64: rms distance from the target after the paths [M, T] of the samples [M]."""

        def output(i: int, x: Tensor, rows: Tensor) -> Tensor:
            picked = samples[rows]
            return self.unit[i + 1] + self.response[i, picked, None] * (x - self.latents[i][picked])

        final = self.solver(self._start(paths), paths, output).final - self.unit[-1]
        return ((final[:, None] @ self.gram[samples])[:, 0] * final).sum(1).clamp(min=0).sqrt()

    def _start(self, paths: Tensor) -> Tensor:
        return self.unit[:1].repeat(len(paths), 1)


def response(full: Trace, other: Trace, called: Tensor) -> Tensor:
    """[T, B] float64: how the outputs of another run moved with its latents.

        r_i = <m_i - m_i', x_i - x_i'> / |x_i - x_i'|^2,   ' of the full run

    at the steps it called [B, T] and whose latents moved, between them interpolated; 0 if none.
    """
    r = torch.zeros(len(full.latents), len(called), dtype=torch.float64)
    known = torch.zeros_like(called)
    for i, x in enumerate(full.latents):
        dx = (other.latents[i] - x).double()
        square = dx.square().sum(1)
        known[:, i] = called[:, i] & (square > SAME**2 * x.double().square().sum(1))
        r[i] = (dx * (other.outputs[i] - full.outputs[i])).sum(1) / square
    for b in range(len(called)):
        at = known[b].nonzero()[:, 0].numpy()
        values = np.interp(range(len(r)), at, r[at, b].numpy()) if len(at) else np.zeros(len(r))
        r[:, b] = torch.from_numpy(values)
    return r


def candidates(called: Tensor, calls: int, max_skip: int) -> tuple[Tensor, Tensor, Tensor]:
    """All ways to skip one more step from which `calls` calls stay within reach.

    Args:
        called: [B, T] bool, a path per sample.

    Returns:
        samples [M] and steps [M] int64, and the paths [M, T] bool; by sample, then by step.
    """
    samples, steps = called[:, 1:].nonzero().T
    steps = steps + 1
    paths = called[samples]
    paths[torch.arange(len(steps)), steps] = False
    good = fewest_calls(paths, max_skip) <= calls
    return samples[good], steps[good], paths[good]


def fewest_calls(called: Tensor, max_skip: int) -> Tensor:
    """[M] int64: the least that a path [M, T] can come to by further skips.

    From each call the farthest within max_skip + 1 steps is kept; T + 1 where there is none.
    """
    steps = called.shape[1]
    last = torch.where(called, torch.arange(steps), 0).cummax(1).values
    at = torch.zeros(len(called), dtype=torch.int64)
    count = torch.ones_like(at)
    while (going := at + max_skip + 1 < steps).any():
        ahead = last.gather(1, (at + max_skip + 1).clamp(max=steps - 1)[:, None])[:, 0]
        stuck = going & (ahead == at)
        count = torch.where(stuck, steps + 1, count + going)
        at = torch.where(stuck, steps, torch.where(going, ahead, at))
    return count
