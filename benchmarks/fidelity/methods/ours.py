"""The methods of this package: AdaptiveSampler under each of its rules, and the plain baselines."""

from __future__ import annotations

import math
from collections.abc import Callable

from adaptive_kernels import AdaptiveConfig, AdaptiveSampler
from adaptive_kernels.rules.laws import LEAST_CALLS, MOST_CALLS

from ..method import Method, Outcome, Run
from ..problem import NOISE_SEED, Batch, Problem

# A stochastic solver's noise streams: sample b of seed s draws stream s * STREAMS + b.
STREAMS = 2**20


def sampled(config: AdaptiveConfig, steps: int | None = None) -> Run:
    """A run of AdaptiveSampler under `config`; `steps` None takes the problem's own."""

    def run(problem: Problem, batch: Batch) -> Outcome:
        sampler = AdaptiveSampler(
            problem.table(steps), config=config, guidance_scale=problem.guidance_scale
        )
        result = sampler(
            problem.model,
            batch.noise,
            batch.conditioning,
            batch.unconditional,
            seed=batch.seed * STREAMS,
            progress=False,
        )
        return Outcome(result.latents, result.nfe.double(), result.refreshed, result.score)

    return run


def tuned(name: str, least: float, most: float, **config) -> Method:
    """A criterion whose threshold, from `least` to `most`, is tuned to a budget."""
    return Method(
        name, lambda threshold: sampled(AdaptiveConfig(threshold, **config)), knob=(least, most)
    )


def pattern(name: str, **config) -> Method:
    """every(k); `k` next to steps / budget on either side."""
    return Method(name, lambda k: sampled(_every(k, **config)), settings=periods)


def periods(problem: Problem, budget: float) -> list[int]:
    """The one or two k > 1 next to steps / budget."""
    ratio = problem.steps / budget
    # steps / (share * steps) may miss a whole number by a rounding.
    around = {math.floor(ratio + 1e-9), math.ceil(ratio - 1e-9)}
    return sorted(k for k in around if k > 1)


def _every(k: float, **config) -> AdaptiveConfig:
    return AdaptiveConfig(criterion=f"every({int(k)})", **config)


def _steps(problem: Problem, budget: float) -> list[int]:
    steps = max(1, round(budget))
    return [steps] if steps < problem.steps else []


def _recommended(calls: float) -> Run:
    config = AdaptiveConfig.recommended(calls=calls)
    return sampled(config, config.num_inference_steps)


def _calls(problem: Problem, budget: float) -> list[float]:
    return [budget] if LEAST_CALLS <= budget <= MOST_CALLS else []


def _default(criterion: str) -> Callable[[Problem, float], list[float]]:
    config = AdaptiveConfig(criterion=criterion)
    return lambda problem, budget: [config.resolved(problem.table()).threshold]


def _measured(tolerance: float) -> Run:
    def run(problem: Problem, batch: Batch) -> Outcome:
        if batch.seed == NOISE_SEED:
            raise ValueError(f"seeds must not hold {NOISE_SEED}, which noise is measured on")
        sizes = problem.output_noise()
        config = AdaptiveConfig(tolerance, criterion="defect", output_noise=sizes)
        return sampled(config)(problem, batch)

    return run


NEVER = AdaptiveConfig(criterion="never")
# The reference of every figure; its setting is the number of steps.
FULL = Method("full", lambda steps: sampled(NEVER), settings=lambda p, budget: [p.steps])

METHODS = [
    FULL,
    Method("fewer_steps", lambda steps: sampled(NEVER, int(steps)), settings=_steps),
    pattern("every"),
    pattern("every+linear", fill="linear"),
    pattern("every+linear, repair", fill="linear", repair=True),
    tuned("third_order", 1e-3, 10, criterion="third_order"),
    tuned("third_order+linear", 1e-3, 10, criterion="third_order", fill="linear"),
    tuned("released", 1e-4, 1, criterion="released"),
    tuned("released+linear", 1e-4, 1, criterion="released", fill="linear"),
    tuned("defect", 1e-5, 0.3, criterion="defect"),
    # Longer runs than the default's, for few calls.
    tuned("defect, max_skip 6", 1e-5, 0.3, criterion="defect", max_skip=6),
    # No run begins before the rate of the fill's error has been measured.
    tuned("defect, warmup 3", 1e-5, 0.3, criterion="defect", warmup=3),
    # More steps than the problem's own, with as many calls as the budget.
    Method("recommended", _recommended, settings=_calls),
    # One decision for all samples of a seed, as published implementations take it.
    tuned("defect, batch", 1e-5, 0.3, criterion="defect", granularity="batch"),
    # The tolerance that a solver and a number of steps ask for.
    Method(
        "defect, default",
        lambda tol: sampled(AdaptiveConfig(tol, criterion="defect")),
        settings=_default("defect"),
    ),
    Method("defect, noise measured", _measured, settings=_default("defect")),
    Method(
        "third_order, default",
        lambda t: sampled(AdaptiveConfig.paper(threshold=t)),
        settings=_default("third_order"),
    ),
    Method(
        "released, default",
        lambda t: sampled(AdaptiveConfig(t, criterion="released")),
        settings=_default("released"),
    ),
    tuned("defect, no repair", 1e-5, 0.3, criterion="defect", repair=False),
]
