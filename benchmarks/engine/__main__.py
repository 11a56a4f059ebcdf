"""Samples per second of the shipped model on a CPU: the engine against plain batches.

    python -m benchmarks.engine --out bench/engine [--requests 256] [--slots 16] [--rounds 5]

The same requests by every way, in turns, so that what slows the machine meets all alike. Speed-ups
are medians over rounds of the ratio to the plain batches of the same round. Written to the folder:
engine.json, engine.png (bars, and samples per second by slots) and timeline.png.
"""

import argparse
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import adaptive_kernels as ak
from adaptive_kernels import files, ops
from adaptive_kernels.demo import model as demo
from benchmarks.check.device import ask
from benchmarks.engine.picture import picture
from benchmarks.engine.ways import FULL, Problem, Way, batches_way, engine_way, mean
from benchmarks.support.machine import cpu_model

SCALING = (1, 4, 16, 64)
AIM, MOST_OVERHEAD = 0.93, 0.03


def problem(count: int, steps: int) -> Problem:
    """Requests for the shipped model, the ten classes by turns, guidance 2."""
    return Problem(
        *(demo.load_demo_model(), demo.demo_scheduler(), steps, demo.SAMPLE_SHAPE),
        [
            ak.Request(seed=n, conditioning={"class_labels": torch.tensor([n % demo.NUM_CLASSES])})
            for n in range(count)
        ],
        guidance_scale=2.0,
        unconditional={"class_labels": torch.tensor([demo.NULL_LABEL])},
    )


def measured(turns: list[Way], rounds: int, bar: tqdm) -> None:
    """Every way once a round; every other round runs backwards."""
    for number in range(rounds):
        for way in turns if number % 2 == 0 else reversed(turns):
            bar.set_description(way.name)
            way.rounds.append(way.run())
            bar.update()


def row(way: Way, base: Way, slots: int, steps: int) -> dict[str, Any]:
    """A way in numbers; base: the plain batches of the same rounds."""
    count = len(way.rounds[0]["nfe"])
    ratios = [b["seconds"] / w["seconds"] for w, b in zip(way.rounds, base.rounds, strict=True)]
    nfe = mean(way.rounds[0]["nfe"])
    overhead = [1 - r["network_seconds"] / r["seconds"] for r in way.rounds]
    return {
        "name": way.name,
        "what": way.what,
        "slots": slots,
        "samples_per_second": count / statistics.median(r["seconds"] for r in way.rounds),
        "speed_up": statistics.median(ratios),
        "speed_ups": sorted(ratios),
        "mean_nfe": nfe,
        "network_calls": way.rounds[0]["calls"],
        "steps_over_nfe": steps / nfe,
        "share_of_steps_over_nfe": statistics.median(ratios) / (steps / nfe),
        "overhead": statistics.median(overhead),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    given = problem(options.requests, options.steps)
    rule, slots = ak.AdaptiveConfig(), options.slots
    engine = engine_way(given, "engine", "refilled slots, every sample for itself", rule, slots)
    plain = batches_way(given, "batches", f"plain batches of {slots}, every call", FULL, slots)
    # As many plain steps as the rule makes calls.
    few = max(1, round(mean(engine.run()["nfe"])))
    wide = ak.AdaptiveConfig(granularity="batch")
    ways = [
        plain,
        batches_way(given, "batch-wide", "batches, one decision for all", wide, slots),
        batches_way(given, "per sample", "batches, finished rows left out", rule, slots),
        engine_way(given, "refill", "refilled slots, every call", FULL, slots),
        engine,
        batches_way(given, "fewer steps", f"batches, {few} plain steps", FULL, slots, few),
    ]
    scaling = [
        engine_way(given, f"{n} slots", "the engine", rule, n) for n in SCALING if n != slots
    ]
    total = len(ways) * options.rounds + len(scaling)
    with tqdm(total=total, disable=options.no_progress) as bar:
        measured(ways, options.rounds, bar)
        measured(scaling, 1, bar)
    engine.engine.timeline_picture(options.out / "timeline.png")
    rows = [row(way, plain, slots, options.steps) for way in ways]
    sizes = {
        n: len(given.requests) / way.rounds[0]["seconds"]
        for n, way in zip((n for n in SCALING if n != slots), scaling, strict=True)
    }
    sizes[slots] = rows[4]["samples_per_second"]
    return {
        "rows": rows,
        "scaling": {str(n): sizes[n] for n in sorted(sizes)},
        "occupancy": engine.rounds[0]["report"]["occupancy"],
        "aims": {
            "share_of_steps_over_nfe": [rows[4]["share_of_steps_over_nfe"], AIM],
            "overhead": [rows[4]["overhead"], MOST_OVERHEAD],
        },
        "settings": {
            **{"requests": options.requests, "slots": slots, "num_inference_steps": options.steps},
            **{"rounds": options.rounds, "guidance_scale": given.guidance_scale},
            **{"model": "the shipped one", "scheduler": type(given.scheduler).__name__},
            "implementation": ops.info()["serves"]["cpu"]["implementation"],
            **{"threads": torch.get_num_threads(), "cpu_count": os.cpu_count()},
            **{"cpu": cpu_model(), "torch": torch.__version__, "python": platform.python_version()},
            **{
                "adaptive_kernels": ak.__version__,
                "commit": ask("git", "rev-parse", "--short", "HEAD"),
            },
        },
    }


def table(report: dict[str, Any]) -> str:
    lines = ["| way | samples per second | speed-up | network calls per sample | overhead |",
             "|---|---|---|---|---|"]  # fmt: skip
    for found in report["rows"]:
        lines.append(
            f"| {found['name']}: {found['what']} | {found['samples_per_second']:.2f} | "
            f"{found['speed_up']:.2f}x | {found['mean_nfe']:.1f} | {found['overhead']:.1%} |"
        )
    for name, (value, limit) in report["aims"].items():
        lines.append(f"{name}: {value:.3f}, aimed at {limit}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    option = parser.add_argument
    option("--out", type=Path, required=True, metavar="DIR")
    option("--requests", type=int, default=256)
    option("--slots", type=int, default=16)
    option("--steps", type=int, default=50)
    option("--rounds", type=int, default=5)
    option("--no-progress", action="store_true")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    report = run(options)
    files.write_json(options.out / "engine.json", report)
    picture(options.out / "engine.png", report)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
