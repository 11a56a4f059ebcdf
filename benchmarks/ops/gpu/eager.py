"""The released code's way to make a step or a run, which bench.py compares with.

The scheduler's step() as a pipeline calls it, latents and norms of the past in Python lists, and a
Python `if` on a number of the device, which waits for the GPU at every decision. It decides for the
whole batch. diffusers' own scheduler serves where it can be imported; where it cannot, `Ddim` has
the same arithmetic, and results say so.
"""

import itertools
import math
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.ops.gpu.cases import (
    GUIDANCE,
    MAX_SKIP,
    OFFSET,
    RUN,
    START,
    STEPS,
    THRESHOLDS,
    TRAINED,
    Case,
    Lane,
    alphas_cumprod,
    timesteps,
)
from benchmarks.ops.gpu.runners import Result, Runner


class Ddim:
    """What diffusers.DDIMScheduler.step (0.40) does with eta = 0, tensor for tensor.

    As there, alphas_cumprod lies on the host and timesteps on the device, so that a lookup waits.
    """

    def __init__(self, device: str):
        self.alphas_cumprod = alphas_cumprod()
        self.timesteps = timesteps().to(device)

    def variance(self, timestep: Tensor, previous: Tensor) -> Tensor:
        alpha_prod_t = self.alphas_cumprod[timestep]
        alpha_prod_t_prev = self.alphas_cumprod[previous if previous >= 0 else 0]
        beta_prod_t, beta_prod_t_prev = 1 - alpha_prod_t, 1 - alpha_prod_t_prev
        return (beta_prod_t_prev / beta_prod_t) * (1 - alpha_prod_t / alpha_prod_t_prev)

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict=False):
        previous = timestep - TRAINED // STEPS
        alpha_prod_t = self.alphas_cumprod[timestep]
        alpha_prod_t_prev = self.alphas_cumprod[previous if previous >= 0 else 0]
        beta_prod_t = 1 - alpha_prod_t
        predicted = (sample - beta_prod_t**0.5 * model_output) / alpha_prod_t**0.5
        deviation = 0.0 * self.variance(timestep, previous) ** 0.5
        direction = (1 - alpha_prod_t_prev - deviation**2) ** 0.5 * model_output
        return alpha_prod_t_prev**0.5 * predicted + direction, predicted


def scheduler(device: str) -> tuple[object, str]:
    """(the scheduler, what it is)."""
    try:
        import diffusers
    except ImportError:
        return Ddim(device), "diffusers is not here: its DDIMScheduler.step() written out"
    made = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=OFFSET,
    )
    made.set_timesteps(STEPS, device=device)
    return made, f"DDIMScheduler of diffusers {diffusers.__version__}"


class Eager(Runner):
    """One call makes the step, or the whole run, from the same start every time."""

    calls = 10

    def __init__(self, case: Case, lanes: list[Lane]):
        super().__init__(case, lanes)
        self.scheduler, self.note = scheduler(lanes[0].state.latents.device.type)
        self.threshold = THRESHOLDS[case.op]
        self.outputs = [self.shaped(lane.model_outputs[0]) for lane in lanes]
        self.starts = [self.start(lane) for lane in lanes]

    def shaped(self, rows: Tensor) -> Tensor:
        return rows.unflatten(1, self.case.size.shape[1:])

    def guided(self, output: Tensor) -> Tensor:
        if not self.case.size.guided:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)

    def solve(self, output: Tensor, step: int, latents: Tensor) -> Tensor:
        timestep = self.scheduler.timesteps[step]
        return self.scheduler.step(output, timestep, latents, return_dict=False)[0]

    def network_input(self, latents: Tensor, step: int) -> Tensor:
        made = torch.cat([latents] * 2) if self.case.size.guided else latents
        made = self.scheduler.scale_model_input(made, self.scheduler.timesteps[step])
        return made.to(self.case.dtype)

    def start(self, lane: Lane) -> SimpleNamespace:
        raise NotImplementedError

    def done(self, latents: Tensor, steps: int, score, kept: Tensor | None = None) -> None:
        made = self.network_input(latents, START + steps)
        self.left = latents, made, steps, score, kept

    def __call__(self, k: int) -> None:
        lane = k % len(self.lanes)
        self.run(self.starts[lane], self.outputs[lane])

    def result(self) -> Result:
        latents, made, steps, (left, right), kept = self.left
        kept = None if kept is None else kept.flatten(1)
        return Result(latents.flatten(1), made.flatten(1), steps, left / right, True, kept)


class EagerDifferences(Eager):
    """`third_order` in the style of the released code."""

    def start(self, lane: Lane) -> SimpleNamespace:
        latents = [self.shaped(lane.latents(back)) for back in (2, 1, 0)]
        norms = [torch.linalg.vector_norm(b - a) for a, b in itertools.pairwise(latents)]
        return SimpleNamespace(latents=latents, norms=norms, computed=[True] * START)

    def run(self, start: SimpleNamespace, output: Tensor) -> None:
        latents, norms, computed = list(start.latents), list(start.norms), list(start.computed)
        output = self.guided(output)
        while True:
            # Whether the network was called for this step.
            computed.append(len(computed) == START)
            latents.append(self.solve(output, len(computed) - 1, latents[-1]))
            norms.append(torch.linalg.vector_norm(latents[-1] - latents[-2]))
            x_3, x_2, x_1, x = latents[-4:]
            third = torch.linalg.vector_norm(x - 3 * x_1 + 3 * x_2 - x_3)
            right = self.threshold * norms[-2]
            if len(computed) == START + 1:
                score = third, right
            if not any(computed[-MAX_SKIP:]) or not third < right:
                break
        self.done(latents[-1], len(computed) - START, score)


class EagerDefect(Eager):
    """`defect` in the same style: a list of kept outputs, one `.item()` and a loop per refresh."""

    def start(self, lane: Lane) -> SimpleNamespace:
        outputs = [self.shaped(lane.kept(back)) for back in (1, 0)]
        gaps = [RUN, *range(1, RUN)]
        weights = lane.state.weights.cpu()
        weights = [weights[START + k, gap - 1, RUN - 1].tolist() for k, gap in enumerate(gaps)]
        costs = lane.state.run_cost[START, RUN - 1].tolist()
        latents = self.shaped(lane.latents(0))
        return SimpleNamespace(latents=latents, outputs=outputs, weights=weights, costs=costs)

    def run(self, start: SimpleNamespace, output: Tensor) -> None:
        older, newer = start.outputs
        fill_0, fill_1, _, repair, _, _, spread = start.weights[0]
        # The defect is a small difference of large numbers: float32 from here on.
        computed = self.guided(output).float()
        difference = computed - (fill_0 * newer + fill_1 * older)
        norm = torch.linalg.vector_norm(difference).item()
        defect = spread * norm / math.sqrt(difference.numel())
        latents = self.solve(computed + repair * difference, START, start.latents)
        skips = 0
        while skips < MAX_SKIP and defect * start.costs[skips] <= self.threshold:
            skips += 1
            fill_0, fill_1, *_ = start.weights[skips]
            filled = fill_0 * computed + fill_1 * newer
            latents = self.solve(filled, START + skips, latents)
        self.done(latents, skips + 1, (defect * start.costs[0], self.threshold), computed)


def eager(case: Case, lanes: list[Lane]) -> Eager:
    return (EagerDefect if case.criterion == "defect" else EagerDifferences)(case, lanes)
