"""Samplings of one network by several executors: first their bits, then their times, in turns."""

import math
from collections.abc import Sequence
from typing import Any

import torch

import adaptive_kernels as ak
from benchmarks.executors.networks import Network
from benchmarks.executors.overhead import compare, overhead, timing
from benchmarks.ops.gpu.cases import GUIDANCE, table
from benchmarks.support.clock import Clock, interleaved

STEPS = 50
PATTERNS = {
    "full": ak.AdaptiveConfig(criterion="never"),
    # The rule computes and decides as ever, and skips wherever it may.
    "adaptive": ak.AdaptiveConfig.paper(threshold=math.inf, max_skip=1),
    # It may always skip and never does: what comes next is known nowhere but on the device.
    "unforeseen": ak.AdaptiveConfig.paper(threshold=0.0),
    "released": ak.AdaptiveConfig(criterion="released"),
}
# Network calls; as many as the latents ask for under "released".
CALLS = {"full": STEPS, "adaptive": 26, "unforeseen": STEPS}


class Sampling:
    """A sampler of one network, called as a user calls it."""

    def __init__(self, clock: Clock, network: Network, executor: str, pattern: str):
        self.clock, self.network, self.executor, self.pattern = clock, network, executor, pattern
        self.sampler = ak.AdaptiveSampler(
            table(STEPS),
            config=PATTERNS[pattern],
            guidance_scale=GUIDANCE,
            executor=executor,
        )
        self.launches = []  # seconds from first to last kernel of the loop, one per call

    def __call__(self, gather: bool = True) -> ak.SamplingResult:
        given = self.network
        return self.sampler(
            *(given.model, given.noise, given.conditioning, given.unconditional),
            gather=gather,
            progress=False,
        )

    def seconds(self) -> float:
        """Of a call, from the arguments to the result."""
        return self.clock.rounds(lambda k: self(), 1, lambda: None, 1)[0]

    def watch(self) -> None:
        """From now on every call adds to `launches`; for one that runs on a captured network."""
        prepared = self.sampler.prepared()
        self.captured, built = prepared.network, prepared.built[self.executor]
        self.start = self.sampler.start(self.network.model, self.network.noise)
        run = built.run

        def timed(bar: Any) -> None:
            self.launches += self.clock.rounds(lambda k: run(bar), 1, lambda: None, 1)

        built.run = timed

    def replays(self, ticks: int) -> float:
        """Seconds of plain replays of the network, one behind the other."""

        def reset() -> None:
            # What stands in the stream before a loop, too.
            self.captured.state.reset(self.start)

        return self.clock.rounds(lambda k: self.captured.graph.replay(), ticks, reset, 1)[0]


def verify(result: ak.SamplingResult, right: ak.SamplingResult, sampling: Sampling) -> None:
    """Raises AssertionError unless the result is the eager loop's, bit for bit."""
    ran, why = result.executor, result.executor_why
    _claim(ran == sampling.executor, f"{sampling.executor} was asked for, {ran} ran: {why}")
    _claim(not bool(result.nonfinite.any()), "the latents hold NaN or Inf")
    calls = CALLS.get(sampling.pattern, int(right.nfe.max()))
    _claim(result.nfe.tolist() == [calls] * len(result.nfe), f"{result.nfe.tolist()} calls")
    _claim(torch.equal(result.refreshed, right.refreshed), "other steps call the network")
    differ = result.latents != right.latents
    largest = float((result.latents - right.latents).abs().max())
    _claim(
        not bool(differ.any()),
        f"{int(differ.sum())} of {differ.numel()} latents differ from the eager loop's, "
        f"by at most {largest:.3g}",
    )


def _claim(right: bool, what: str) -> None:
    if not right:
        raise AssertionError(what)


def measure(clock: Clock, network: Network, planned: Sequence[dict], seconds: float) -> list[dict]:
    """A row of results for every planned one of a network; rows of what failed have an error."""
    rows, ready, eager = {plan["name"]: {} for plan in planned}, [], {}

    def reference(pattern: str) -> ak.SamplingResult:
        if pattern not in eager:
            eager[pattern] = Sampling(clock, network, "eager", pattern)(gather=False)
        return eager[pattern]

    try:
        for plan in planned:
            row = {**plan, **network.facts, "note": network.note}
            sampling = Sampling(clock, network, plan["executor"], plan["pattern"])
            try:
                right = reference(sampling.pattern)
                result = right if sampling.executor == "eager" else sampling(gather=False)
                verify(result, right, sampling)
                if sampling.executor != "eager":
                    sampling.watch()
                ready.append(({**row, **figures(result)}, sampling))
            except Exception as error:
                sampling.sampler.close()
                rows[row["name"]] = {**row, "error": f"{type(error).__name__}: {error}"[:600]}
        rows |= {row["name"]: row for row in times(ready, seconds)}
    finally:
        for _, sampling in ready:
            sampling.sampler.close()
    measured = list(rows.values())
    compare(measured)
    return measured


def figures(result: ak.SamplingResult) -> dict:
    # A tick calls the network for every unfinished sample: there are as many as the most calls.
    return {
        "steps": STEPS,
        "ticks": int(result.nfe.max()),
        "nfe": float(result.nfe.double().mean()),
        "executor_why": result.executor_why,
    }


def times(ready: list[tuple[dict, Sampling]], seconds: float) -> list[dict]:
    turns = {}
    for row, sampling in ready:
        turns[row["name"]] = sampling.seconds
        if sampling.executor != "eager":
            turns[f"replays of {row['name']}"] = lambda s=sampling, row=row: s.replays(row["ticks"])
    found = interleaved(turns, seconds) if turns else {}
    rows = []
    for row, sampling in ready:
        row = {**row, **timing(found[row["name"]])}
        if sampling.executor != "eager":
            replays = found[f"replays of {row['name']}"]
            row |= overhead(sampling.launches, replays, row["ticks"])
        rows.append({**row, **sampling.sampler.report()})
    return rows
