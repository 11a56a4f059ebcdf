"""The released code's way: diffusers' scheduler, lists of the past, decisions in Python.

The scheduler's step() as a pipeline calls it, latents and norms of the past in Python lists, and a
Python `if` on a number of the device, which waits for a GPU at every decision. It decides for the
whole batch.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from .start import Result, Start


class Eager:
    """One call makes the step, or the whole run, from the same start every time.

    Args:
        scheduler: with `timesteps`, step() and scale_model_input() of diffusers.
    """

    def __init__(self, start: Start, scheduler: Any):
        self.start, self.scheduler = start, scheduler
        self.output = self.shaped(start.model_output)
        # As a pipeline's loop over them gives them.
        self.timesteps = list(scheduler.timesteps[start.step : start.step + start.steps + 1])

    def shaped(self, rows: Tensor) -> Tensor:
        return rows.unflatten(1, self.start.shape[1:])

    def guided(self) -> Tensor:
        if self.start.guidance_scale is None:
            return self.output
        unconditional, conditional = self.output.chunk(2)
        return unconditional + self.start.guidance_scale * (conditional - unconditional)

    def solve(self, output: Tensor, done: int, latents: Tensor) -> Tensor:
        timestep = self.timesteps[done]
        return self.scheduler.step(output, timestep, latents, return_dict=False)[0]

    def __call__(self) -> None:
        # What the last call left would stand in the way of what this one makes.
        self.left = None
        self.run()

    def run(self) -> None:
        raise NotImplementedError

    def leave(self, latents: Tensor, steps: int, refresh: bool, score, kept=None) -> None:
        guided = self.start.guidance_scale is not None
        model_input = torch.cat([latents] * 2) if guided else latents
        model_input = self.scheduler.scale_model_input(model_input, self.timesteps[steps])
        self.left = latents, model_input.to(self.start.dtype), steps, refresh, score, kept

    def result(self) -> Result:
        latents, model_input, steps, refresh, (left, right), kept = self.left
        kept = None if kept is None else kept.flatten(1)
        flat = latents.flatten(1), model_input.flatten(1)
        return Result(*flat, steps, refresh, left / right, True, kept)


class EagerDifferences(Eager):
    """`released`, and the paper's `third_order` in the same style."""

    def __init__(self, start: Start, scheduler: Any):
        super().__init__(start, scheduler)
        self.latents = [self.shaped(x) for x in reversed(start.latents)]
        self.norms = [self.norm(b - a) for a, b in itertools.pairwise(self.latents)]

    def norm(self, difference: Tensor) -> Tensor:
        if self.start.criterion == "third_order":
            return torch.linalg.vector_norm(difference)
        return difference.abs().mean()

    def sides(self, latents: list[Tensor], norms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Left and right side of the criterion."""
        before_last, last, newest = norms[-3:]
        right = self.start.threshold * last
        if self.start.criterion == "released":
            return abs((newest + before_last) / 2 - last), right
        x_3, x_2, x_1, x = latents[-4:]
        return torch.linalg.vector_norm(x - 3 * x_1 + 3 * x_2 - x_3), right

    def run(self) -> None:
        start, latents, norms = self.start, list(self.latents), list(self.norms)
        computed = [True] * start.step
        output = self.guided()
        for done in range(1, start.steps + 1):
            # Whether the network was called for this step.
            computed.append(done == 1)
            latents.append(self.solve(output, done - 1, latents[-1]))
            norms.append(self.norm(latents[-1] - latents[-2]))
            left, right = self.sides(latents, norms)
            if done == 1:
                score = left, right
            within = left <= right if start.criterion == "released" else left < right
            if refresh := not any(computed[-start.max_skip :]) or not within:
                break
        self.leave(latents[-1], done, refresh, score)


class EagerDefect(Eager):
    """`defect` in the same style: a list of kept outputs, one `.item()` and a loop per refresh."""

    def __init__(self, start: Start, scheduler: Any):
        super().__init__(start, scheduler)
        self.latents = self.shaped(start.latents[0])
        self.kept = [self.shaped(e) for e in start.kept]
        self.weights, self.costs = start.weights.tolist(), start.costs.tolist()
        self.defect = float(start.measures[0, 0])

    def run(self) -> None:
        start, (newest, older) = self.start, self.kept
        fill_0, fill_1, _, repair, _, _, spread, _ = self.weights[0]
        output, computed, defect = fill_0 * newest + fill_1 * older, None, self.defect
        if start.fresh:
            # The defect is a small difference of large numbers: float32 from here on.
            computed = self.guided().float()
            difference = computed - output
            norm = torch.linalg.vector_norm(difference).item()
            defect = spread * norm / math.sqrt(difference.numel())
            output = computed + repair * difference
            newest, older = computed, newest
        latents, done, skips = self.solve(output, 0, self.latents), 1, start.skips
        score = defect * self.costs[skips], start.threshold
        while not (refresh := not self.may_skip(defect, skips)) and done < start.steps:
            fill_0, fill_1, *_ = self.weights[done]
            filled = fill_0 * newest + fill_1 * older
            latents = self.solve(filled, done, latents)
            done, skips = done + 1, skips + 1
        self.leave(latents, done, refresh, score, computed)

    def may_skip(self, defect: float, skips: int) -> bool:
        start = self.start
        return skips < start.max_skip and defect * self.costs[skips] <= start.threshold


def eager(start: Start, scheduler: Any) -> Eager:
    return (EagerDefect if start.criterion == "defect" else EagerDifferences)(start, scheduler)
