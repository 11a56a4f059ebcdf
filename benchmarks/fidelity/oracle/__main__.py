"""The command line: `python -m benchmarks.fidelity.oracle`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..problem import SOLVERS, shipped
from . import agreement
from .search import MODES

PROGRAM = "python -m benchmarks.fidelity.oracle"


def main(arguments: list[str] | None = None) -> int:
    """Search, measure and write; the exit status is 0, 1 after an error, 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=agreement.__doc__)
    option, count = parser.add_argument, {"type": int, "metavar": "N"}
    option("--solver", choices=SOLVERS, default="ddim", help="default: ddim")
    option("--steps", **count, default=50, help="of the solver; default: 50")
    option("--samples-per-class", **count, default=1, help="default: 1, ten samples")
    option("--calls", **count, default=20, help="of the network on a greedy path; default: 20")
    option("--mode", choices=MODES, default="shortlist", help="default: shortlist; true: minutes")
    option("--seed", **count, default=0, help="of the noise; default: 0")
    option("--out", type=Path, default=Path("bench/fidelity"), metavar="DIR", help="for results")
    option("--no-progress", action="store_true", help="draw no progress bar")
    option("--json", action="store_true", help="print JSON in place of the tables")
    given = parser.parse_args(arguments)
    try:
        problem = shipped(given.solver, given.steps, given.samples_per_class)
        batch = problem.batch(given.seed)
        measured = agreement.measure(problem, batch, given.calls, given.mode, not given.no_progress)
        title = f"{problem.name}, {given.calls} calls, {len(batch.noise)} samples"
        report = agreement.write(given.out, measured, batch.labels, problem.group_names, title)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    if "linear" not in measured.costs:
        print("no linear fill and no defect: the solver's levels are not known", file=sys.stderr)
    tables = "\n\n".join(map(agreement.table, report.values()))
    print(json.dumps(report, indent=2) if given.json else tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
