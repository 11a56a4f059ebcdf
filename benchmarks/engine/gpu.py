"""Samples per second of the engine on a GPU, against plain batches and the bound T / mean(NFE).

    python -m benchmarks.engine.gpu --out bench/gpu/engine.json [--seconds 60]

DiT-like stacks of matrix products whose full batch takes 1 and 5 ms, random weights. Who calls the
network when is forced, so that it is the same on every device: half of the requests make every
call, half as few as max_skip lets them; nothing is timed before that was seen. `--device cpu
--tiny` runs the same code on a CPU.
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any, NamedTuple

import torch

import adaptive_kernels as ak
from adaptive_kernels.demo.model import demo_scheduler
from benchmarks.engine.ways import FULL, Problem, Way, batches_way, engine_way, mean
from benchmarks.executors.networks import DTYPE, Stack, inputs, replay
from benchmarks.support.clock import Clock, clock, interleaved
from benchmarks.support.command import exit_code, has_device, parser

STEPS, SLOTS, REQUESTS, MAX_SKIP = 50, 16, 48, 4
WORDS = {
    "samples_per_second": "of the median round",
    "speed_up": "over plain batches that make every call, median over rounds",
    "share_of_bound": "speed_up / (T / mean NFE)",
    "share_of_filled": "speed_up / (T / mean NFE x occupancy); a queue's end leaves slots empty",
    "occupancy": "share of the slots that held a sample, mean over ticks",
    "host_us_per_tick": "microseconds per network call beside the network, by the device's clock",
    "replay_us": "microseconds of the network on a full batch as a CUDA graph; the engine launches "
    "it call by call",
}


class Case(NamedTuple):
    """A network whose full batch takes about `wanted_us`."""

    name: str
    wanted_us: float
    size: int = 64
    width: int = 512
    needs: float = 0.0  # seconds in all, as estimated


# The one that is asked for most comes first.
CASES = (Case("5 ms", 5000.0, needs=11), Case("1 ms", 1000.0, needs=5))
TINY = (Case("tiny", 1000.0, size=8, width=16),)


def stack(timer: Clock, case: Case, rows: int) -> tuple[Stack, float, dict]:
    """(network, microseconds of its replay on so many rows, the two halves of conditions)."""
    generator = torch.Generator(timer.device).manual_seed(0)
    noise, halves = inputs(case.size, {"text": (8, 64)}, timer.device, generator)

    def build(blocks: int) -> Stack:
        torch.manual_seed(0)
        with torch.device(timer.device):
            model = Stack(blocks, case.width, context=64, layers=16)
        return model.to(DTYPE).eval().requires_grad_(False)

    def replay_us(model: Stack) -> float:
        x = noise.to(DTYPE).repeat(rows, 1, 1, 1)
        at = torch.zeros(rows, device=timer.device)
        text = halves[0]["text"].repeat(rows, 1, 1)
        return replay(timer, lambda: model(x, at, text))

    few, many = (replay_us(build(blocks)) for blocks in (1, 5))
    block_us = max((many - few) / 4, 1e-3)
    model = build(max(1, round((case.wanted_us - few) / block_us) + 1))
    return model, replay_us(model), {"conditioning": halves[0], "unconditional": halves[1]}


def forced(case: Case, timer: Clock) -> tuple[Problem, float]:
    """Requests of which every other one makes each call, and the replay of a full batch."""
    model, replay_us, halves = stack(timer, case, 2 * SLOTS)
    thresholds = (0.0, float("inf"))
    requests = [
        ak.Request(seed=n, conditioning=halves["conditioning"], threshold=thresholds[n % 2])
        for n in range(REQUESTS)
    ]
    shape = (4, case.size, case.size)
    given = Problem(model, demo_scheduler(), STEPS, shape, requests, 4.0, halves["unconditional"])
    given.device = timer.device
    return given, replay_us


def checked(problem: Problem, config: ak.AdaptiveConfig) -> None:
    """Raise AssertionError unless every request makes the calls that are forced on it."""
    few = problem.requests[:SLOTS]
    engine = ak.Engine(
        problem.model,
        problem.scheduler,
        STEPS,
        slots=SLOTS,
        shape=problem.shape,
        config=config,
        guidance_scale=problem.guidance_scale,
        unconditional=problem.unconditional,
    )
    found = list(engine.run(few, ordered=True, progress=False))
    # The third of the calls that must be made carries the first run.
    least = 2 + -(-(STEPS - 2) // (MAX_SKIP + 1))
    calls = [sample.nfe for sample in found]
    expected = [STEPS if request.threshold == 0 else least for request in few]
    if calls != expected or any(sample.nonfinite for sample in found):
        raise AssertionError(f"calls must be {expected}, got {calls}")


def measure(case: Case, timer: Clock, seconds: float) -> list[dict[str, Any]]:
    problem, replay_us = forced(case, timer)
    config = ak.AdaptiveConfig.paper(max_skip=MAX_SKIP)
    checked(problem, config)
    ways = [
        batches_way(problem, "batches", "plain batches, every call", FULL, SLOTS),
        engine_way(problem, "refill", "refilled slots, every call", FULL, SLOTS),
        engine_way(problem, "engine", "refilled slots, forced skips", config, SLOTS),
    ]
    for way in ways:
        way.run()

    def turn(way: Way) -> float:
        timer.wait()
        way.rounds.append(way.run())
        return way.rounds[-1]["seconds"]

    times = interleaved({w.name: (lambda w=w: turn(w)) for w in ways}, seconds)
    rows = []
    for way in ways:
        last, nfe = way.rounds[-1], mean(way.rounds[-1]["nfe"])
        ratios = [b / t for b, t in zip(times["batches"], times[way.name], strict=True)]
        row = {
            "network": case.name,
            "name": f"{case.name}, {way.name}",
            "way": way.name,
            "what": way.what,
            "samples_per_second": REQUESTS / statistics.median(times[way.name]),
            "speed_up": statistics.median(ratios),
            "mean_nfe": nfe,
            "bound": STEPS / nfe,
            "share_of_bound": statistics.median(ratios) / (STEPS / nfe),
            "share_of_filled": None,
            "network_calls": last["calls"],
            "replay_us": replay_us,
            "rounds": len(ratios),
        }
        if "report" in last:
            report = last["report"]
            row["occupancy"] = report["occupancy"]
            row["share_of_filled"] = row["share_of_bound"] / report["occupancy"]
            outside = [r["seconds"] - r["network_seconds"] for r in way.rounds]
            row["host_us_per_tick"] = statistics.median(outside) / report["ticks"] * 1e6
        rows.append(row)
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is timed, written to options.out after every network."""
    began, timer = time.perf_counter(), clock(options.device)
    cases = TINY if options.tiny else CASES
    report: dict[str, Any] = {
        "device": options.device,
        "words": WORDS,
        "settings": {"steps": STEPS, "slots": SLOTS, "requests": REQUESTS, "max_skip": MAX_SKIP},
        "cases": [case.name for case in cases],
        "rows": [],
        "not_begun": [case.name for case in cases],
        "failed": [],
    }

    def write() -> None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")

    write()
    for case in cases:
        if time.perf_counter() - began + case.needs > options.seconds:
            continue
        try:
            rows = measure(case, timer, 0.2 * case.needs)
        except Exception as error:
            report["failed"].append(f"{case.name}: {type(error).__name__}: {error}"[:600])
            rows = []
        report["rows"] += rows
        report["not_begun"].remove(case.name)
        for row in rows:
            print(
                f"{row['name']:<20} {row['samples_per_second']:8.2f} samples/s, "
                f"{row['speed_up']:.2f}x, {row['share_of_bound']:.3f} of the bound",
                flush=True,
            )
        write()
    return report


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, seconds=60.0).parse_args(arguments)
    if not has_device(options):
        return 1
    with torch.no_grad():
        report = run(options)
    return exit_code(report)


if __name__ == "__main__":
    sys.exit(main())
