"""The records as a table: a row per cell, method and budget."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from .features import kid
from .methods.ours import FULL
from .records import Records, appearing
from .run import Entry, budget_calls

COLUMNS = (
    *("solver", "steps", "dtype", "method", "budget", "setting", "samples"),
    *("nfe_mean", "nfe_std", "nfe_min", "nfe_max"),
    *("psnr_db", "psnr_db_low", "psnr_db_high"),
    *("worst_tenth_db", "worst_tenth_db_low", "worst_tenth_db_high", "identical", "nonfinite"),
    *("independent_db", "independent_worst_tenth_db"),
    *("limit_db", "limit_worst_tenth_db", "limit_lost_db"),
    *("ssim", "lpips", "kid", "kid_std", "kid_other", "kid_other_std", "wall_s", "speedup"),
)
FIGURES = ("nfe", "psnr", "limit", "ssim", "lpips", "nonfinite", "wall_s")
RESAMPLES = 2000


def rows(
    records: Records, entries: Sequence[Entry], seeds: Sequence[int], tuning_seeds: Sequence[int]
) -> list[dict]:
    """One dict of COLUMNS per entry, over the samples of all `seeds`; None where there is nothing.

    - budget: share of the steps, above 1 calls, 1 for the full run; setting: the method's; samples:
      how many.
    - nfe_*: network calls of a sample; std: between samples.
    - psnr_db: mean against the full run's images in [-1, 1], without the samples that are
      identical to them, counted in `identical`; worst_tenth_db: mean of the worst tenth. low and
      high: 95 % interval, bootstrapped over the samples.
    - independent_*: the same, were the error of this method at this setting with a float32 network
      and that of the network's own full run independent; of other dtypes, where both are known.
    - limit_*: PSNR against the images that more and more steps lead to, mean and worst tenth, and
      how much less than the full run's that mean is; where that limit is known.
    - nonfinite: samples with NaN or Inf in their latents; their images are grey there.
    - ssim, lpips: mean against the full run's images.
    - kid, kid_std: on EfficientNet features, against the full run's images of the same noise, as an
      unbiased estimate below 0 where the images hardly differ; kid_other: against its images of
      the tuning seeds, in the full run's own row what other noise alone makes.
    - wall_s: seconds of one run of one seed, the mean over the seeds, each measured once;
      speedup: the full run's seconds over these.
    """
    figures_of: dict[tuple, dict] = {}
    features: dict[tuple, torch.Tensor | None] = {}

    def features_of(key: tuple, seeds: Sequence[int]) -> torch.Tensor | None:  # [samples, 1280]
        if (*key, *seeds) not in features:
            loaded = [records.load(*key, seed, only=["features"]) for seed in seeds]
            complete = all(loaded)
            stacked = torch.cat([x["features"] for x in loaded]).float() if complete else None
            features[(*key, *seeds)] = stacked
        return features[(*key, *seeds)]

    table = []
    for cell, method, setting, budget in entries:
        key = (cell.problem.name, method, setting)
        full = (cell.problem.reference.name, FULL.name, float(cell.steps))
        own_full = (cell.problem.name, FULL.name, float(cell.steps))
        if full not in figures_of:
            # Another cell begins.
            features.clear()
        for entry in (full, own_full, key):
            if entry not in figures_of:
                loaded = [records.load(*entry, seed, only=FIGURES) for seed in seeds]
                figures_of[entry] = figures(
                    {k: torch.stack([x[k] for x in loaded]) for k in loaded[0]}
                )
                own, same = features_of(entry, seeds), features_of(full, seeds)
                figures_of[entry] |= _kid("kid", own, same if entry != full else None)
                figures_of[entry] |= _kid("kid_other", own, features_of(full, tuning_seeds))
        row = {"solver": cell.solver, "steps": cell.steps, "dtype": cell.problem.dtype}
        row |= {"method": method, "budget": budget, "setting": setting, **figures_of[key]}
        lost = (figures_of[name]["limit_db"] for name in (full, key))
        row["limit_lost_db"] = _difference(*lost)
        row["speedup"] = figures_of[own_full]["wall_s"] / row["wall_s"]
        exact = (cell.problem.reference.name, method, setting)
        row |= _independent(records, seeds, () if method == FULL.name else (exact, own_full))
        table.append({name: row[name] for name in COLUMNS})
    return table


def figures(arrays: dict[str, torch.Tensor]) -> dict:
    """The figures of one method from the arrays of its records, stacked over the seeds.

    Args:
        arrays: nfe, psnr, ssim, nonfinite and, where they were measured, limit and lpips [seeds,
            B]; wall_s [seeds].
    """
    nfe, db = arrays["nfe"].flatten(), arrays["psnr"].flatten()
    differs = db[db < math.inf].numpy()
    worst = math.ceil(len(db) / 10)
    result = {
        "samples": len(db),
        "nfe_mean": nfe.mean().item(),
        "nfe_std": nfe.std(correction=0).item() if nfe.min() < nfe.max() else 0.0,
        "nfe_min": nfe.min().item(),
        "nfe_max": nfe.max().item(),
        "identical": len(db) - len(differs),
        "nonfinite": int(arrays["nonfinite"].sum()),
        "ssim": arrays["ssim"].mean().item(),
        "lpips": arrays["lpips"].mean().item() if "lpips" in arrays else None,
        "wall_s": arrays["wall_s"].mean().item(),
        "limit_db": None,
        "limit_worst_tenth_db": None,
    }
    if "limit" in arrays:
        to_limit = arrays["limit"].flatten()
        result["limit_db"] = to_limit.mean().item()
        result["limit_worst_tenth_db"] = to_limit.sort().values[:worst].mean().item()
    for name, statistic in (
        ("psnr_db", lambda x: x.mean(-1)),
        ("worst_tenth_db", lambda x: np.sort(x, -1)[..., :worst].mean(-1)),
    ):
        names = (name, f"{name}_low", f"{name}_high")
        values = _interval(differs, statistic) if len(differs) else (None,) * 3
        result |= dict(zip(names, values, strict=True))
    return result


def _independent(
    records: Records, seeds: Sequence[int], parts: Sequence[tuple]
) -> dict[str, float | None]:
    """The figures of samples whose squared errors are the sums of those of other records."""
    names = ("independent_db", "independent_worst_tenth_db")
    known = parts and all(records.names(*part, seed) for part in parts for seed in seeds)
    if not known or parts[0][0] == parts[1][0]:
        return dict.fromkeys(names)
    squares = 0.0
    for part in parts:
        db = torch.cat([records.load(*part, seed, only=["psnr"])["psnr"] for seed in seeds])
        squares = squares + 10 ** (-db.double() / 10)
    db = (-10 * squares.log10()).sort().values
    worst = db[: math.ceil(len(db) / 10)]
    return dict(zip(names, (db.mean().item(), worst.mean().item()), strict=True))


def _interval(
    x: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float, float]:  # of the sample, low, high
    draws = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    low, high = np.quantile(statistic(x[draws]), [0.025, 0.975])
    return float(statistic(x)), float(low), float(high)


def _kid(name: str, a: torch.Tensor | None, b: torch.Tensor | None) -> dict[str, float | None]:
    known = a is not None and b is not None and min(len(a), len(b)) > 1
    mean, std = kid(a, b) if known else (None, None)
    return {name: mean, f"{name}_std": std}


def write_csv(path: Path, table: Sequence[dict]) -> None:
    """Write rows of COLUMNS; None is empty, numbers have six significant digits."""
    with appearing(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in table:
            values = (row[name] for name in COLUMNS)
            writer.writerow(f"{x:.6g}" if isinstance(x, float) else x for x in values)


def summary(table: Sequence[dict], best: int = 4) -> str:
    """For each cell and budget the `best` methods by mean PSNR, of those that met the budget.

    A method met it whose mean NFE is at most 5 % or half a call above.
    """
    lines = []
    cells = dict.fromkeys((row["solver"], row["steps"], row["dtype"]) for row in table)
    for cell in cells:
        here = [r for r in table if (r["solver"], r["steps"], r["dtype"]) == cell]
        inside = [r for r in here if r["method"] != "full"]
        for budget in sorted({row["budget"] for row in inside}):
            calls = budget_calls(budget, cell[1])
            met = {
                row["method"]: row
                for row in sorted(inside, key=lambda r: _decibel(r["psnr_db"]))
                if row["nfe_mean"] <= calls + max(0.5, 0.05 * calls)
            }
            first = sorted(met.values(), key=lambda r: -_decibel(r["psnr_db"]))[:best]
            named = (f"{r['method']} {_decibel(r['psnr_db']):.1f}" for r in first)
            dtype = "" if cell[2] == "float32" else f" {cell[2]}"
            lines.append(f"{cell[0]}-{cell[1]}{dtype}, {calls:.1f} calls: {', '.join(named)}")
    return "\n".join(lines)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _decibel(psnr_db: float | None) -> float:  # None: every sample is identical
    return math.inf if psnr_db is None else psnr_db
