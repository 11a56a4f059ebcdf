"""Times whole samplings on the GPU: the loop as a CUDA graph, in groups, and as a plain loop.

    python -m benchmarks.executors.loop --out bench/gpu/loop.json [--seconds 145]

Every executor must have the latents of the eager loop, bit for bit, before it is timed; one that
has not, or does not run as asked, is reported and not timed. The JSON is written after every
network, and none is begun that would not end within the seconds. Full-size U-Nets need diffusers
and are skipped without it. `--device cpu --tiny` runs the same code on a CPU, which has no graphs.
"""

import argparse
import functools
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.executors import networks
from benchmarks.executors.networks import Missing, Network
from benchmarks.executors.overhead import title
from benchmarks.executors.samplings import CALLS, STEPS, measure
from benchmarks.support.clock import Clock, clock
from benchmarks.support.command import exit_code, has_device, parser

# What the words of a result mean, for whoever reads the JSON alone.
WORDS = {
    "us": f"microseconds of a sampling of {STEPS} steps, from the call to the result: median over "
    "rounds; low_us and high_us are the quartiles",
    "ticks": "network calls of the loop; nfe: of a sample, on average",
    "launch_us": "microseconds of the loop alone, between CUDA events around its launch",
    "replay_us": "microseconds of a plain replay of the same captured network, `ticks` in a row",
    "overhead_us_per_tick": "(launch_us - ticks replay_us) / ticks, with overhead_error_us",
    "overhead_share": "of launch_us",
    "speedup": "times the time of this that the full run of the same executor takes",
    "steps_over_nfe": "the speedup there would be if nothing but the network took time",
    "speedup_share": "speedup / steps_over_nfe",
    "memory": "bytes that the sampler holds on the device: the captured network's, and its buffers",
    "eager": "the package's plain loop; all with cuDNN's deterministic algorithms",
    "graph": "one launch: a loop inside a CUDA graph",
    "groups": "a graph per tick, launched ahead by the host",
    "full": "the network is called at every step",
    "adaptive": f"a forced pattern: {CALLS['adaptive']} of {STEPS} calls",
    "unforeseen": f"{STEPS} calls, decided one by one: a run of skipped steps may always follow",
    "released": "the rule of the method's authors",
}
UNET_PLANS = (
    *(("eager", "full"), ("eager", "released")),
    *(("graph", "full"), ("graph", "adaptive")),
)
STACK_PLANS = (
    *(("graph", "full"), ("graph", "adaptive")),
    *(("groups", "adaptive"), ("groups", "unforeseen")),
)


class Case(NamedTuple):
    """One network and the samplings of it."""

    network: str
    kind: str  # "U-Net" or "stack"
    make: Callable[[Clock], Network]
    seconds: float = 0.0  # of timed rounds; there are three at least
    needs: float = 0.0  # seconds in all, as estimated for an H200

    def rows(self) -> list[dict]:
        plans = UNET_PLANS if self.kind == "U-Net" else STACK_PLANS
        variants = [dict(zip(("executor", "pattern"), plan, strict=True)) for plan in plans]
        variants = [{"network": self.network, "kind": self.kind, **row} for row in variants]
        return [{"name": title(row), **row} for row in variants]


def _stack(wanted_us: float, **shape: int) -> Callable[[Clock], Network]:
    return functools.partial(networks.stack, wanted_us=wanted_us, **shape)


def _unet(config: dict, least_bytes: float = 0.0) -> Callable[[Clock], Network]:
    return functools.partial(networks.unet, config=config, least_bytes=least_bytes)


# By what is asked of them, first to last: time may run out.
CASES = (
    Case("SD-1.5", "U-Net", _unet(networks.SD15, 6e9), seconds=8, needs=20),
    Case("0.2 ms", "stack", _stack(200), seconds=3, needs=6),
    Case("1 ms", "stack", _stack(1000), seconds=4, needs=8),
    Case("5 ms", "stack", _stack(5000), seconds=6, needs=12),
    Case("SDXL", "U-Net", _unet(networks.SDXL, 16e9), seconds=24, needs=55),
    Case("20 ms", "stack", _stack(20000), seconds=14, needs=28),
)
TINY = (
    Case("tiny stack", "stack", _stack(1000, size=8, width=16)),
    Case("tiny U-Net", "U-Net", _unet(networks.TINY)),
)


def run(options: argparse.Namespace) -> dict:
    """Everything that is timed, written to options.out after every network."""
    began = time.perf_counter()
    timer = clock(options.device)
    cases = TINY if options.tiny else CASES
    report = {
        "device": options.device,
        "words": WORDS,
        "cases": [row for case in cases for row in case.rows()],
        "rows": [],
        "skipped": {},
        "not_begun": [case.network for case in cases],
        "failed": [],
    }

    def write() -> None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")

    write()
    slower = 1.0
    for case in cases:
        start = time.perf_counter() - began
        # A shorter one may still end in time.
        if start + slower * case.needs > options.seconds:
            continue
        rows = []
        try:
            rows = measure(timer, case.make(timer), case.rows(), case.seconds)
        except Missing as error:
            report["skipped"][case.network] = str(error)
        except Exception as error:
            report["failed"].append(f"{case.network}: {type(error).__name__}: {error}"[:600])
        report["rows"] += rows
        report["failed"] += [f"{r['name']}: {r['error']}" for r in rows if "error" in r]
        report["not_begun"].remove(case.network)
        took = time.perf_counter() - began - start
        slower = max(slower, took / case.needs if case.needs else 1.0)
        say(case, rows, took, report["skipped"].get(case.network))
        write()
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
    return report


def say(case: Case, rows: list[dict], took: float, skipped: str | None) -> None:
    print(f"{case.network} ({case.kind}), {took:.0f} s {skipped or ''}".rstrip(), flush=True)
    for row in rows:
        text = row.get("error")
        if text is None:
            text = f"{row['us'] / 1e3:9.3f} ms, {row['nfe']:g} calls"
            if row.get("replay_us"):
                text += f", {row['overhead_us_per_tick']:.1f} us per tick of {row['replay_us']:.1f}"
        print(f"    {row['executor'] + ', ' + row['pattern']:<20} {text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    command = parser(__doc__, seconds=145.0)
    options = command.parse_args(arguments)
    if not has_device(options):
        return 1
    # The same convolutions inside a graph and outside of it, for the bits' sake.
    torch.backends.cudnn.deterministic = True
    with torch.no_grad():
        report = run(options)
    return exit_code(report)


if __name__ == "__main__":
    sys.exit(main())
