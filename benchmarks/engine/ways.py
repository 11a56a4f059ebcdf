"""The ways to sample a queue that are compared: plain batches, and slots that refill."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import adaptive_kernels as ak
from adaptive_kernels.engine.request import noise_of
from adaptive_kernels.sampling.network import network_dtype

FULL = ak.AdaptiveConfig(criterion="never")


@dataclass
class Problem:
    """A network, a scheduler and a queue of requests.

    model: takes the conditions of the requests by name. shape: of a sample.
    """

    model: Callable
    scheduler: Any
    steps: int
    shape: tuple[int, ...]
    requests: Sequence[ak.Request]
    guidance_scale: float | None = None
    unconditional: dict[str, Tensor] | None = None
    device: str = "cpu"


@dataclass
class Way:
    """One way to sample all requests.

    run: does it once, and returns what it came to: {"seconds", "network_seconds", "nfe": [per
    request], and of an engine its report}.
    """

    name: str
    what: str
    run: Callable[[], dict[str, Any]]
    rounds: list[dict[str, Any]] = field(default_factory=list)


class Watched:
    """The network with the host's time in it, and its rows; on a GPU that is the launch alone."""

    def __init__(self, problem: Problem):
        self.problem, self.seconds, self.calls, self.rows = problem, 0.0, 0, 0

    def __call__(self, x: Tensor, timestep: Tensor, **conditions: Tensor) -> Tensor:
        began = time.perf_counter()
        output = self.problem.model(x, timestep, **conditions)
        self.seconds += time.perf_counter() - began
        self.calls += 1
        self.rows += len(x)
        return output


def engine_way(problem: Problem, name: str, what: str, config, slots: int) -> Way:
    """Refilled slots."""
    one = ak.Engine(
        problem.model,
        problem.scheduler,
        problem.steps,
        slots=slots,
        shape=problem.shape,
        config=config,
        guidance_scale=problem.guidance_scale,
        unconditional=problem.unconditional,
        device=problem.device,
    )

    def run() -> dict[str, Any]:
        began = time.perf_counter()
        nfe = [sample.nfe for sample in one.run(problem.requests, progress=False)]
        seconds = time.perf_counter() - began
        report = one.report()
        found = {"seconds": seconds, "network_seconds": report["network_seconds"]}
        return {**found, "nfe": nfe, "calls": report["ticks"], "report": report}

    way = Way(name, what, run)
    way.engine = one
    return way


def batches_way(
    problem: Problem, name: str, what: str, config, slots: int, steps: int | None = None
) -> Way:
    """Batches of `slots`, one after the other, each until its last sample is done."""
    sampler = ak.AdaptiveSampler(
        problem.scheduler,
        problem.steps if steps is None else steps,
        config,
        problem.guidance_scale,
        network_dtype(problem.model),
        executor="eager",
    )

    def run() -> dict[str, Any]:
        network, nfe = Watched(problem), []
        began = time.perf_counter()
        for first in range(0, len(problem.requests), slots):
            batch = problem.requests[first : first + slots]
            noise = torch.cat([noise_of(request.seed, problem.shape) for request in batch])
            conditions = {
                key: torch.cat([request.conditioning[key] for request in batch])
                for key in batch[0].conditioning
            }
            unconditional = None
            if problem.guidance_scale is not None:
                unconditional = {
                    key: value.expand(len(batch), *value.shape[1:])
                    for key, value in problem.unconditional.items()
                }
            result = sampler(
                network,
                noise.to(problem.device),
                conditions,
                unconditional,
                seed=[request.seed for request in batch],
                threshold=_thresholds(batch),
                progress=False,
            )
            nfe += result.nfe.tolist()
        seconds = time.perf_counter() - began
        found = {"seconds": seconds, "network_seconds": network.seconds}
        return {**found, "nfe": nfe, "calls": network.calls, "rows": network.rows}

    return Way(name, what, run)


def _thresholds(batch: Sequence[ak.Request]) -> Tensor | None:
    given = [request.threshold for request in batch]
    return None if None in given else torch.tensor(given)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
