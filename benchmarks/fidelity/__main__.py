"""The command line: `python -m benchmarks.fidelity`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch

from adaptive_kernels.pictures import decisions_picture

from . import features, folder, pictures
from .problem import DTYPES, SOLVERS, shipped
from .records import Records, appearing
from .run import METHODS, Cell, Entry, Laboratory, budget_calls
from .table import rows, summary, write_csv

PROGRAM = "python -m benchmarks.fidelity"
SHIPPED_GUIDANCE = 2.0
# nfe.png and decisions.png show the first of these that ran, at the budget nearest to this share.
SHOWN = ("defect", "third_order", "released")
SHOWN_SHARE = 0.32


def _number(
    kind: Callable[[str], float], least: float, most: float, what: str
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Run every method at every budget of network calls against the full run of "
        "the same solver from the same noise. Each run is stored as it ends: a second start goes "
        "on where the first one stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    count = _number(int, 1, 1000, "a whole number from 1 to 1000")
    seed = _number(int, 0, 2**40, "a whole number of at least 0")
    share = _number(float, 1e-3, 1000, "a share from 0.001 to 1, or more than 1 for calls")
    positive = _number(float, 0, 1e6, "a finite number of at least 0")
    several = {"nargs": "+"}
    option("--solvers", **several, metavar="NAME", help=f"of {', '.join(SOLVERS)}; with --model "
           f"also {folder.OWN}; None: all of them, with --model {folder.OWN}")  # fmt: skip
    option("--steps", **several, type=count, default=[50, 28, 20], metavar="N", help="solver steps")
    option("--dtypes", **several, choices=list(DTYPES), default=["float32"], metavar="NAME",
           help=f"of the shipped network, of {', '.join(DTYPES)}; every figure is measured against "
           "the float32 network's full run")  # fmt: skip
    option("--budgets", **several, type=share, default=[0.2, 0.26, 0.32, 0.4, 0.5], metavar="X",
           help="mean network calls: shares of the steps, or above 1 the calls")  # fmt: skip
    option("--methods", **several, metavar="NAME", help="None: all")
    option("--samples-per-class", type=count, default=4, metavar="N", help="or per prompt")
    option("--seeds", **several, type=seed, default=[1, 2, 3], metavar="N", help="reported")
    option("--tuning-seeds", **several, type=seed, default=[100], metavar="N",
           help="settings are tuned on; none of --seeds")  # fmt: skip
    option("--guidance", type=positive, metavar="G", help="None: 2, or the model's usual")
    option("--model", type=Path, metavar="DIR", help="a diffusers model folder; None: shipped")
    option("--prompts", type=Path, metavar="FILE", help="a line each, for a text-to-image model")
    option("--device", default="cpu", metavar="NAME", help="of the network; all else is on the CPU")
    option("--out", type=Path, default=Path("bench/fidelity"), metavar="DIR", help="results")
    option("--threads", type=count, metavar="N", help="threads of torch; None: its default")
    option("--no-progress", action="store_true", help="draw no progress bar")
    option("--json", action="store_true", help="print the table as JSON on stdout and everything "
           "else on stderr")  # fmt: skip
    return parser


def _cells(arguments: argparse.Namespace) -> list[Cell]:
    solvers = arguments.solvers or (SOLVERS if arguments.model is None else (folder.OWN,))
    known = SOLVERS if arguments.model is None else (folder.OWN, *SOLVERS)
    for solver in solvers:
        if solver not in known:
            raise ValueError(f"solvers must be of {', '.join(known)}, got {solver!r}")
    grid = [(solver, steps) for solver in _unique(solvers) for steps in _unique(arguments.steps)]
    samples, guidance = arguments.samples_per_class, arguments.guidance
    if arguments.model is None:
        if arguments.prompts is not None:
            raise ValueError(f"prompts need a model, got {arguments.prompts} and no model")
        scale = SHIPPED_GUIDANCE if guidance is None else guidance
        dtypes = _unique(arguments.dtypes)
        return [
            Cell(s, n, shipped(s, n, samples, scale, d, device=arguments.device))
            for s, n in grid
            for d in dtypes
        ]
    if arguments.dtypes != ["float32"]:
        raise ValueError(f"dtypes are the shipped network's, got {arguments.dtypes} and a model")
    lines = arguments.prompts.read_text().splitlines() if arguments.prompts else []
    prompts = [line.strip() for line in lines if line.strip()]
    given = (samples, guidance, prompts, arguments.device)
    return [Cell(s, n, folder.problem_from_folder(arguments.model, s, n, *given)) for s, n in grid]


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0]
        raise ValueError(f"device must be one that torch can use, got {name!r}: {told}") from error


def _options(arguments: argparse.Namespace) -> dict:
    """What a record depends on, beside what its name says."""
    model = None if arguments.model is None else folder.fingerprint(arguments.model)
    prompts = arguments.prompts.read_text() if arguments.prompts else None
    guidance = SHIPPED_GUIDANCE if arguments.guidance is None and not model else arguments.guidance
    options = {"samples_per_class": arguments.samples_per_class, "guidance": guidance}
    return options | {"model": model, "prompts": prompts, "device": arguments.device}


def _weights(text) -> ModuleType | None:
    try:
        features.fetch()
    except (RuntimeError, OSError) as error:
        print(f"no LPIPS and no KID, their columns stay empty: {error}", file=text)
        return None
    return features


def _draw(
    out: Path, records: Records, entries: Sequence[Entry], table: Sequence[dict], seeds: list[int]
) -> dict[str, str]:
    """Draw what can be drawn: file name -> why it was not, empty where it was."""
    names = ("psnr-nfe.png", "limit.png", "nfe.png", "decisions.png", "ablation.png")
    notes = dict.fromkeys(names, "")
    for name in notes:
        (out / name).unlink(missing_ok=True)
    with appearing(out / "psnr-nfe.png") as path:
        pictures.psnr_picture(path, table)
    if any(row["limit_db"] is not None for row in table):
        with appearing(out / "limit.png") as path:
            pictures.limit_picture(path, table)
    else:
        notes["limit.png"] = "needs a problem whose limit is known"

    cell = entries[0].cell
    inside = [e for e in entries if e.cell is cell]
    shown = [e for name in SHOWN for e in inside if e.method == name]
    if shown:
        first = [e for e in shown if e.method == shown[0].method]
        shown_calls = SHOWN_SHARE * cell.steps
        entry = min(first, key=lambda e: abs(budget_calls(e.budget, cell.steps) - shown_calls))
        key = (cell.problem.name, entry.method, entry.setting)
        loaded = [records.load(*key, seed) for seed in seeds]
        names = cell.problem.group_names
        calls, labels = (torch.cat([x[k] for x in loaded]) for k in ("nfe", "labels"))
        title = f"{cell.problem.name}, {entry.method} at {entry.setting:.3g}: mean NFE "
        with appearing(out / "nfe.png") as path:
            whole = f"{title}{calls.mean():.1f} of {cell.steps}"
            pictures.nfe_picture(path, calls, labels, names, whole)
        one = loaded[0]
        with appearing(out / "decisions.png") as path:
            whole = f"{title}{one['nfe'].mean():.1f} of {cell.steps}, seed {seeds[0]}"
            traces = one["refreshed"], one["score"].float(), one["labels"]
            decisions_picture(path, *traces, names, whole)
    else:
        notes["nfe.png"] = notes["decisions.png"] = f"needs one of {', '.join(SHOWN)}"

    periods = [{e.setting for e in inside if e.method == m} for m in ("every", "skip_update")]
    both = sorted(set.intersection(*periods))
    if both:
        k, images = both[0], {}
        for method in ("every", "skip_update"):
            record = records.load(cell.problem.name, method, k, seeds[0])
            row = next(r for r, e in zip(table, entries, strict=True) if e[:3] == (cell, method, k))
            images[f"{method}({k:g})"] = (record["images"], row["psnr_db"])
        full = records.load(cell.problem.name, "full", float(cell.steps), seeds[0])
        with appearing(out / "ablation.png") as path:
            names = cell.problem.group_names
            pictures.ablation_picture(path, full["images"], images, full["labels"], names)
    else:
        notes["ablation.png"] = "needs every and skip_update at one period"
    return notes


def _run(arguments: argparse.Namespace) -> None:
    text = sys.stderr if arguments.json else sys.stdout
    known = {method.name: method for method in METHODS}
    for name in arguments.methods or ():
        if name not in known:
            raise ValueError(f"methods must be of {', '.join(known)}, got {name!r}")
    methods = [known[name] for name in _unique(arguments.methods or known)]
    seeds, tuning_seeds = _unique(arguments.seeds), _unique(arguments.tuning_seeds)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    _check_device(arguments.device)
    # Every figure is measured against a float32 network.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    cells = _cells(arguments)
    records = Records(arguments.out, _options(arguments))
    seen = _weights(text), not arguments.no_progress, arguments.device
    laboratory = Laboratory(records, seeds, tuning_seeds, *seen)
    entries = laboratory.run(cells, methods, _unique(arguments.budgets))
    table = rows(records, entries, seeds, tuning_seeds)
    write_csv(arguments.out / "fidelity.csv", table)
    notes = _draw(arguments.out, records, entries, table, seeds)
    print(
        "the best by mean PSNR against the full run, in dB, of those within the budget", file=text
    )
    print(summary(table), file=text)
    print("wall_s: one run a seed on this machine as it was, so 5 to 20 % of noise", file=text)
    drawn = [name for name, why in notes.items() if not why]
    for name, why in notes.items():
        if why:
            print(f"{name} was not drawn: {why}", file=text)
    names = ["fidelity.csv", *drawn]
    print("wrote " + ", ".join(str(arguments.out / name) for name in names), file=text)
    if arguments.json:
        print(json.dumps(table, indent=2, allow_nan=False))


def _unique(values) -> list:
    return list(dict.fromkeys(values))


def main(arguments: list[str] | None = None) -> int:
    """Run the laboratory and return the exit status: 0, 1 after an error, 2 for bad arguments.

    Args:
        arguments: the words of the command line; None takes those of the process.
    """
    parsed = _parser().parse_args(arguments)
    try:
        _run(parsed)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
