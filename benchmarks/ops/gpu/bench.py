"""Times `step` and `advance` on the GPU against eager torch, torch.compile and a copy.

    python -m benchmarks.ops.gpu.bench --out bench/gpu/bench.json [--seconds 200]

Every implementation is checked against `reference` before it is timed; one that fails is reported
and not timed. The JSON is written after every case, the cases come by what is asked of them, and
none is begun that would not end within the seconds. `--device cpu --tiny` runs the same code on a
CPU; its times mean nothing.
"""

import argparse
import functools
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable

import torch

from adaptive_kernels import ops
from benchmarks.ops.gpu.cases import LAUNCHES, SIZES, TINY, Case, Lane, cases, lane
from benchmarks.ops.gpu.expected import expected, verify
from benchmarks.ops.gpu.runners import Captured, Compiled, Copy, Eager, Op, Runner
from benchmarks.support.clock import Clock, ceilings, clock
from benchmarks.support.command import exit_code, has_device, parser

# What the words of a result mean, for whoever reads the JSON alone.
WORDS = {
    "us": "microseconds of a launch: median over rounds; low_us and high_us are the quartiles",
    "bytes": "what a launch must read and write once",
    "graph": f"{LAUNCHES} launches in one CUDA graph, each from where the last one stopped",
    "graph of one": "replays of a CUDA graph that holds one launch, all of them on one state",
    "calls": "calls from Python, one behind the other",
    "L2": "one state: small data stays in the GPU's cache between launches, as in a sampling",
    "device memory": "launches take turns at states of four times the cache",
    "ours": "the compiled library",
    "triton": "the same op in Triton",
    "eager": "diffusers' scheduler, lists of the past, a Python `if` on a tensor",
    "compiled": 'the same as one function under torch.compile(mode="reduce-overhead")',
    "captured": "torch.compile's kernels without its calls: many in one CUDA graph, as ours",
    "copy": "the device's copy of half the bytes: as many read and written together",
}
# What serves a device where the op is worth timing.
COMPILED = {"cuda": "compiled CUDA", "cpu": "compiled C++"}


def compiled_op(case: Case, lanes: list[Lane]) -> Op:
    device = lanes[0].state.latents.device.type
    name, why = ops.implementation(device)
    if name != COMPILED[device]:
        raise AssertionError(f"the op is served by {name}: {why}")
    return Op(case, lanes, getattr(ops, case.op))


def triton_op(case: Case, lanes: list[Lane]) -> Op:
    module = importlib.import_module("adaptive_kernels.ops.triton.launch")
    op = Op(case, lanes, getattr(module, case.op))
    # `advance` in Triton is a launch per step; a graph shows what that costs.
    op.hows = ("graph", "calls")
    return op


def implementations(device: str) -> dict[str, Callable[[Case, list[Lane]], Runner]]:
    runners = {"ours": compiled_op, "eager": Eager, "copy": Copy}
    if device == "cuda":
        if importlib.util.find_spec("adaptive_kernels.ops.triton.launch"):
            runners["triton"] = triton_op
        runners |= {"compiled": Compiled, "captured": Captured}
    return runners


def time_one(runner: Runner, how: str, clock: Clock, seconds: float) -> dict:
    """A runner's time by one of its hows."""
    ks, launches = list(range(runner.calls)), 1
    call, calls = runner, runner.calls
    if how == "graph":
        graph = clock.capture(functools.partial(in_turn, runner, ks))
        call, calls, launches = (lambda k: graph()), 1, len(ks)
    elif how == "graph of one":
        graph = clock.capture(functools.partial(runner, 0))
        call, ks = (lambda k: graph()), [0] * len(ks)
    timing = clock.measure(call, calls, launches=launches, reset=runner.reset, seconds=seconds)
    runner.verify(ks)
    return timing._asdict()


def in_turn(runner: Runner, ks: list[int]) -> None:
    for k in ks:
        runner(k)


def measure(case: Case, clock: Clock, seconds: float, runners: dict[str, Callable]) -> list[dict]:
    """A row of results for every implementation and how; rows of what failed have an error."""
    count = case.lanes(clock.cache_bytes)
    lanes = [lane(case, clock.device, seed) for seed in range(count)]
    right = expected(case, lanes[0])
    facts = {**case.facts(), "lanes": count, "data": "L2" if count == 1 else "device memory"}
    rows = []
    for name, make in runners.items():
        row = {**facts, "implementation": name, "how": None}
        try:
            runner = make(case, lanes)
            runner.reset()
            runner(0)
            clock.wait()
            if (result := runner.result()) is not None:
                verify(case, lanes[0], right, result, eager=name == "eager")
            for how in runner.hows:
                row["how"] = how
                timing = time_one(runner, how, clock, seconds)
                rate = case.bytes_moved / timing["us"] / 1e3
                rows.append({**row, **timing, "GB_per_s": rate, "note": runner.note})
        except Exception as error:
            rows.append({**row, "error": f"{type(error).__name__}: {error}"[:600]})
    return rows


def run(options: argparse.Namespace) -> dict:
    """Everything that is timed, written to options.out after every case."""
    began = time.perf_counter()
    timer = clock(options.device)
    planned = cases(TINY if options.tiny else SIZES)
    report = {
        "device": options.device,
        "words": WORDS,
        "cache_bytes": timer.cache_bytes,
        "ceilings": None,
        "cases": [case.facts() for case in planned],
        "rows": [],
        "not_begun": [str(case) for case in planned],
        "failed": [],
    }

    def write() -> None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")

    write()
    try:
        report["ceilings"] = ceilings(timer, 1 << 20 if options.tiny else 1 << 30)
        print(json.dumps(report["ceilings"]), flush=True)
    except Exception as error:
        report["failed"].append(f"ceilings: {type(error).__name__}: {error}")
    longest = 0.0
    for case in planned:
        start = time.perf_counter()
        if start + longest > began + options.seconds:
            break
        try:
            rows = measure(case, timer, options.each, implementations(options.device))
        except Exception as error:
            rows = []
            report["failed"].append(f"{case}: {type(error).__name__}: {error}")
        report["rows"] += rows
        report["failed"] += [
            f"{case}, {r['implementation']}: {r['error']}" for r in rows if "error" in r
        ]
        report["not_begun"].remove(str(case))
        longest = max(longest, time.perf_counter() - start)
        say(case, rows, time.perf_counter() - began)
        write()
        gc.collect()
    write()
    return report


def say(case: Case, rows: list[dict], seconds: float) -> None:
    print(f"{case} ({case.bytes_moved / 1e6:.2f} MB), at {seconds:.0f} s", flush=True)
    for row in rows:
        how = f"{row['implementation']}, {row['how']}"
        text = row.get("error") or f"{row['us']:10.2f} us {row['GB_per_s']:9.1f} GB/s"
        print(f"    {how:<20} {text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    command = parser(__doc__, seconds=200.0)
    command.add_argument("--each", type=float, default=0.12, help="seconds of a time")
    options = command.parse_args(arguments)
    if not has_device(options):
        return 1
    with torch.no_grad():
        report = run(options)
    return exit_code(report)


if __name__ == "__main__":
    sys.exit(main())
