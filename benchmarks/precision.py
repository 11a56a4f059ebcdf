"""What half precision costs each rule: `python -m benchmarks.precision --out precision.csv`.

The shipped model under every solver of the laboratory, in every dtype, every figure against the
float32 network's full run; on a GPU some two minutes, on a CPU an hour, most of it float16's.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import adaptive_kernels as ak
from adaptive_kernels import AdaptiveConfig, AdaptiveSampler
from adaptive_kernels.metrics import psnr

from .fidelity.problem import DTYPES, NOISE_SEED, SOLVERS, Batch, Problem, shipped, worst_tenth

GUIDANCE = 2.0
COLUMNS = (
    *("solver", "steps", "dtype", "rule", "setting", "samples", "calls", "calls_float32"),
    *("db", "worst_tenth_db", "independent_db", "independent_worst_tenth_db", "output_noise"),
)


class Rule(NamedTuple):
    """A rule at one setting; `of` names the one whose float32 run it is compared with."""

    name: str
    setting: float
    config: AdaptiveConfig
    of: str


def rules(problem: Problem) -> list[Rule]:
    """The full run first."""

    def rule(name: str, setting: float, of: str | None = None, **config) -> Rule:
        return Rule(name, setting, AdaptiveConfig(**config), of or name)

    found = [rule("full", problem.steps, criterion="never")]
    for t in (0.0008, 0.0016, 0.0032):
        found.append(rule("defect", t, threshold=t, criterion="defect"))
    auto = AdaptiveConfig().resolved(problem.table()).threshold
    found.append(rule("defect, default", auto, threshold=auto, criterion="defect"))
    told = {"threshold": 0.0016, "criterion": "defect", "of": "defect"}
    found.append(rule("defect, noise not told", 0.0016, **told, output_noise=0.0))
    if problem.dtype != "float32":
        sizes = problem.output_noise()
        found.append(rule("defect, noise measured", 0.0016, **told, output_noise=sizes))
    found += [
        rule("third_order", 0.1, threshold=0.1, criterion="third_order"),
        rule("third_order+linear", 0.1, threshold=0.1, criterion="third_order", fill="linear"),
        rule("released", 0.01, threshold=0.01, criterion="released"),
        rule("every(3)", 3, criterion="every(3)"),
        rule("every(3)+linear", 3, criterion="every(3)", fill="linear"),
        rule("every(3)+linear, repair", 3, criterion="every(3)", fill="linear", repair=True),
    ]
    if problem.name.startswith("ddim-50"):
        for calls in (10, 16):
            config = ak.load_config(f"fashion-ddim-50-calls-{calls}")
            found.append(Rule("plan", calls, config, "plan"))
    return found


def placed(problem: Problem, device: str) -> Problem:
    """The problem with its network and its samples on a device."""

    def batch(seed: int) -> Batch:
        here = problem.batch(seed)
        trees = {name: getattr(here, name) for name in ("conditioning", "unconditional")}
        moved = {
            name: {key: value.to(device) for key, value in tree.items()}
            for name, tree in trees.items()
        }
        return replace(here, noise=here.noise.to(device), **moved)

    return replace(problem, model=problem.model.to(device), batch=batch)


def samples(problem: Problem, seeds: tuple[int, ...]) -> tuple[Tensor, dict, dict]:
    """Noise, conditioning and unconditional of all seeds."""
    batches = [problem.batch(seed) for seed in seeds]

    def joined(trees: list[dict]) -> dict:
        return {name: torch.cat([tree[name] for tree in trees]) for name in trees[0]}

    noise = torch.cat([batch.noise for batch in batches])
    conditioning = joined([batch.conditioning for batch in batches])
    return noise, conditioning, joined([batch.unconditional for batch in batches])


def cell(solver: str, steps: int, per_class: int, seeds: tuple[int, ...], device: str):
    """Yields a row of COLUMNS for each dtype and rule."""
    exact, known = None, {}
    for dtype in DTYPES:
        problem = placed(shipped(solver, steps, per_class, GUIDANCE, dtype), device)
        noise, *conditioning = samples(problem, seeds)
        full = None
        for name, setting, config, of in rules(problem):
            sampler = AdaptiveSampler(
                problem.table(), config=config, guidance_scale=GUIDANCE, executor="eager"
            )
            result = sampler(problem.model, noise, *conditioning, progress=False)
            images = problem.decode(result.latents)
            exact = images if exact is None else exact
            db = psnr(images, exact).double().cpu()
            error, calls = 10 ** (-db / 10), result.nfe.double().mean().item()
            full = error if name == "full" else full
            row = dict.fromkeys(COLUMNS, "") | {"solver": solver, "steps": steps, "dtype": dtype}
            row |= {"rule": name, "setting": setting, "samples": len(noise), "calls": calls}
            row |= {"db": db.mean().item(), "worst_tenth_db": worst_tenth(db)}
            row["output_noise"] = result.output_noise.mean().item()
            if dtype == "float32":
                known[name, setting] = error, calls
            elif (of, setting) in known:
                row["calls_float32"] = known[of, setting][1]
                if name != "full":
                    both = -10 * (known[of, setting][0] + full).log10()
                    row["independent_db"] = both.mean().item()
                    row["independent_worst_tenth_db"] = worst_tenth(both)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    option = parser.add_argument
    option("--out", type=Path, default=Path("bench/precision.csv"), help="the table")
    option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    option("--solvers", nargs="+", choices=SOLVERS, default=SOLVERS)
    option("--steps", nargs="+", type=int, default=[50, 28, 20])
    option("--samples-per-class", type=int, default=2)
    option("--seeds", nargs="+", type=int, default=[1, 2, 3])
    given = parser.parse_args()
    if NOISE_SEED in given.seeds:
        parser.error(f"--seeds must not hold {NOISE_SEED}, which noise is measured on")
    # A float32 network is what the others are measured against.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    given.out.parent.mkdir(parents=True, exist_ok=True)
    cells = [(solver, steps) for steps in given.steps for solver in given.solvers]
    with given.out.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for solver, steps in tqdm(cells, unit="cell"):
            seeds = tuple(given.seeds)
            for row in cell(solver, steps, given.samples_per_class, seeds, given.device):
                table.writerow(
                    {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
                )
                file.flush()
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
