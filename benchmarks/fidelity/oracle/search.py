"""The greedily searched skipping path of every sample: what a rule could do that knew the end.

From the full path, the one further step whose skipping moves the final latents least away from the
sample's own full run is skipped, again and again, until `calls` network calls are left. The first
step always calls, at most `max_skip` steps in a row are skipped, and no skip may put `calls` out
of reach under that limit. The paper (AdaptiveDiffusion, arXiv 2410.09873, figures 4 and 5) searches
greedily too, but its code is not public: one call a round, the rms distance and the limit of 4,
the default of its rule here, are this module's choices. A greedy path is no optimum, and a search
for fewer calls may pass by another path than one for more. MODES of evaluating the candidates:

- "true": the network is called along each path, to its end, as nothing bounds what later steps
  make of an error; what paths have in common is called once, within a round and over the rounds.
- "recorded": the network's outputs are those of the full run, whatever the latents are.
- "shortlist": the outputs also move with the latents, by one number per step that is measured on
  the path "recorded" found; in the last LAST rounds the SHORT best candidates so forecast are
  evaluated as "true" does. The better of the result and of "recorded"'s path is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..method import Method, Outcome, Run
from ..problem import Batch, Problem
from .paths import Forecast, Outputs, Solver, Trace, candidates, response

MODES = ("true", "recorded", "shortlist")
MAX_SKIP = 4
LAST, SHORT = 6, 3
WORST = torch.finfo(torch.float64).max

# (called [B, T], paths [M, T], samples [M], steps [M]) -> errors [M], inf where not evaluated
Cost = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GreedyPaths:
    """A path of every sample and what became of it."""

    left: Tensor  # [B, T] int64: calls left when the step was skipped; 0: it calls
    latents: Tensor  # [B, ...] float32, of a run on these paths
    error: Tensor  # [B] float64: rms distance from the full run
    evaluated: int  # network calls spent, one a sample and step, those of the full run included

    def called(self, calls: int = 1) -> Tensor:
        """[B, T] bool: the paths on the way, at so many calls; 1: as they are in the end."""
        return self.left < calls


class Oracle:
    """A batch, its full run, and the search for paths close to it.

    Args:
        problem: its solver adds no noise and calls the network once a step.
        fill: what stands for a skipped output, "reuse" or "linear"; see `paths.Solver`.
        max_skip: largest number of consecutive skipped steps, at least 0.

    Raises: ValueError naming the argument.
    """

    def __init__(
        self, problem: Problem, batch: Batch, fill: str = "reuse", max_skip: int = MAX_SKIP
    ) -> None:
        table = problem.table()
        if table.S.any() or table.stages > 1:
            raise ValueError(
                "problem must have a solver that adds no noise and calls the network once a step, "
                f"got {table} with noise up to {table.S.abs().max():g}"
            )
        if max_skip < 0:
            raise ValueError(f"max_skip must be at least 0, got {max_skip}")
        self.max_skip, self.steps, self.shape = max_skip, table.num_steps, batch.noise.shape
        self.solver, self.outputs = Solver(table, fill, max_skip), Outputs(problem, batch, table)
        self.start = batch.noise.flatten(1).float() * table.init_noise_sigma
        self.samples = torch.arange(len(self.start))
        self.everywhere = torch.ones(len(self.start), self.steps, dtype=torch.bool)
        self.full = self.run(self.everywhere, self.samples)

    @torch.no_grad()
    def run(self, paths: Tensor, samples: Tensor) -> Trace:
        """Sample on the paths [M, T] of the samples [M], calling the network."""
        return self.solver(self.start[samples], paths, self.outputs.along(paths, samples))

    def distance(self, final: Tensor, samples: Tensor) -> Tensor:
        """[M] float64: rms distance of latents [M, N] from the samples' full runs; NaN is WORST."""
        square = (final - self.full.final[samples]).double().square().mean(1)
        return square.sqrt().nan_to_num(WORST, WORST)

    def true(self, called: Tensor, paths: Tensor, samples: Tensor, steps: Tensor) -> Tensor:
        """A Cost: the error of each path, the network called along it."""
        return self.distance(self.run(paths, samples).final, samples)

    def recorded(self, response: Tensor) -> Cost:
        """A Cost: the error forecast around the full run, with the response [T, B]."""
        forecast = Forecast(self.solver, self.full, self.everywhere, response, self.full.final)
        return lambda called, paths, samples, steps: forecast.errors(paths, samples).nan_to_num(
            WORST, WORST
        )

    def single_costs(self) -> Tensor:
        """[T, B] float64: the true error where that step alone is skipped; NaN at the first."""
        cost = torch.full((len(self.samples), self.steps), torch.nan, dtype=torch.float64)
        samples, steps, paths = candidates(self.everywhere, self.steps, self.max_skip)
        cost[samples, steps] = self.true(self.everywhere, paths, samples, steps)
        return cost.T

    def search(self, calls: int, mode: str = "true", progress: bool = False) -> GreedyPaths:
        """The paths with `calls` calls, found in one of MODES.

        Raises: ValueError where `calls` is out of reach or `mode` is another.
        """
        least = math.ceil(self.steps / (self.max_skip + 1))
        if not least <= calls <= self.steps:
            raise ValueError(
                f"calls must be from {least} to {self.steps} with {self.steps} steps and max_skip "
                f"{self.max_skip}, got {calls}"
            )
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        counts = range(self.steps - 1, calls - 1, -1)
        rounds = len(counts) * (2 if mode == "shortlist" else 1)
        still = torch.zeros(self.steps, len(self.samples), dtype=torch.float64)
        left = torch.zeros(self.everywhere.shape, dtype=torch.int64)
        with tqdm(total=rounds, unit="round", desc=f"greedy, {mode}", disable=not progress) as bar:
            first = self.true if mode == "true" else self.recorded(still)
            left = self._skip(left, calls, counts, first, bar)
            trace = self.run(left == 0, self.samples)
            final, error = trace.final, self.distance(trace.final, self.samples)
            if mode == "shortlist":
                early = max(0, len(counts) - LAST)
                moving = self.recorded(response(self.full, trace, left == 0))
                other = self._skip(torch.zeros_like(left), calls, counts[:early], moving, bar)
                other = self._skip(other, calls, counts[early:], Shortlist(self), bar)
                trace = self.run(other == 0, self.samples)
                now = self.distance(trace.final, self.samples)
                better = (now < error)[:, None]
                left = torch.where(better, other, left)
                final = torch.where(better, trace.final, final)
                error = torch.minimum(now, error)
        return GreedyPaths(left, final.view(self.shape), error, self.outputs.calls)

    def _skip(self, left: Tensor, calls: int, counts: range, cost: Cost, bar: tqdm) -> Tensor:
        """Skip one more step of every sample for each number of calls left in `counts`."""
        left = left.clone()
        for n in counts:
            # The next round's paths go through what this one has evaluated, and through no more.
            self.outputs.forget()
            samples, steps, paths = candidates(left == 0, calls, self.max_skip)
            error = torch.full(left.shape, torch.inf, dtype=torch.float64)
            error[samples, steps] = cost(left == 0, paths, samples, steps)
            left[self.samples, error.argmin(1)] = n
            bar.update()
        return left


class Shortlist:
    """A Cost that calls the network for the SHORT candidates of a sample that a forecast prefers.

    The forecast is made around the path so far, and corrected by its last misses.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.miss = torch.ones(oracle.everywhere.shape, dtype=torch.float64)  # true / forecast

    def __call__(self, called: Tensor, paths: Tensor, samples: Tensor, steps: Tensor) -> Tensor:
        oracle = self.oracle
        base = oracle.run(called, oracle.samples)
        moving, target = response(oracle.full, base, called), oracle.full.final
        forecast = Forecast(oracle.solver, base, called, moving, target)
        guess = forecast.errors(paths, samples).nan_to_num(WORST, WORST)
        grid = torch.full(called.shape, torch.inf, dtype=torch.float64)
        grid[samples, steps] = (guess * self.miss[samples, steps]).clamp(max=WORST)
        best = grid.topk(min(SHORT, oracle.steps), largest=False).indices
        chosen = torch.zeros_like(called).scatter_(1, best, True)[samples, steps]
        error = torch.full_like(guess, torch.inf)
        error[chosen] = oracle.true(called, paths[chosen], samples[chosen], steps[chosen])
        self.miss[samples[chosen], steps[chosen]] = (error / guess.clamp(min=1e-30))[chosen]
        return error


def _method(name: str, fill: str) -> Method:
    def make(calls: float) -> Run:
        def run(problem: Problem, batch: Batch) -> Outcome:
            found = Oracle(problem, batch, fill).search(int(calls), "shortlist")
            called = found.called().T
            return Outcome(found.latents, called.sum(0).double(), called)

        return run

    def settings(problem: Problem, budget: float) -> list[int]:
        table = problem.table()
        calls = max(round(budget), math.ceil(problem.steps / (MAX_SKIP + 1)))
        suits = not table.S.any() and table.stages == 1 and (fill == "reuse" or table.levels)
        return [calls] if suits and calls < problem.steps else []

    return Method(name, make, settings=settings)


# Each path is found on the very sample it serves, in mode "shortlist" (a second or so a sample on
# one core at 50 steps); NFE counts the calls on the path alone.
METHODS = [_method("greedy oracle", "reuse"), _method("greedy oracle, linear", "linear")]
