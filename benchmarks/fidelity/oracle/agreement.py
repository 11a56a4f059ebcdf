"""How well the rules' estimators foretell what skipping a step costs, and the greedy path."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaptive_kernels import AdaptiveConfig
from adaptive_kernels.metrics import psnr
from adaptive_kernels.pictures import DPI

from ..methods.ours import sampled
from ..problem import Batch, Problem, worst_tenth
from ..records import appearing
from .paths import FILLS
from .search import GreedyPaths, Oracle

OTHERS = "other samples"
COLORS = {"third_order": "tab:blue", "released": "tab:cyan", "defect": "tab:red"}
COLORS |= {"reuse": "0.5", "linear": "tab:orange"}
# A threshold that never skips, yet keeps the score, left over right side, within float32.
NEVER = 1e-12


def ranks(x: Tensor) -> Tensor:
    """[..., n] float64: ranks from 1 along the last dimension; equal values share their mean."""
    below = (x[..., :, None] > x[..., None, :]).sum(-1)
    equal = (x[..., :, None] == x[..., None, :]).sum(-1)
    return below + (equal + 1) / 2.0


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """[...] float64: Spearman's rank correlation of [..., n]; NaN where one of them is constant."""
    if x.shape != y.shape or x.dim() == 0:
        raise ValueError(f"x and y must be [..., n], got {tuple(x.shape)} and {tuple(y.shape)}")
    a, b = (r - r.mean(-1, keepdim=True) for r in (ranks(x).double(), ranks(y).double()))
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def chi_square(table: Tensor) -> dict[str, float]:
    """Pearson's test of independence on a 2x2 table of counts, without continuity correction.

        chi2 = sum (n - e)^2 / e,  e = row sum * column sum / total,  V = sqrt(chi2 / total)

    with one degree of freedom; agreement is the diagonal's share of the total, by_chance that of
    the e. Decisions of one sample are no independent draws: the p-value is too good.

    Raises: ValueError where the table is not 2x2 or a row or a column of it is empty.
    """
    if table.shape != (2, 2) or bool((table < 0).any()):
        raise ValueError(f"table must be 2x2 counts, got {table.tolist()}")
    n = table.double()
    e = n.sum(1, keepdim=True) * n.sum(0) / n.sum()
    if not bool((e > 0).all()):
        raise ValueError(f"table must have no empty row or column, got {table.tolist()}")
    chi2 = ((n - e).square() / e).sum()
    # The tail of chi-square with one degree of freedom.
    p = torch.special.gammaincc(torch.tensor(0.5, dtype=torch.float64), chi2 / 2)
    result = {"chi2": chi2, "p": p, "cramers_v": (chi2 / n.sum()).sqrt()}
    result |= {"agreement": n.trace() / n.sum(), "by_chance": e.trace() / n.sum()}
    return {name: value.item() for name, value in result.items()}


def lowest(values: Tensor, count: Tensor) -> Tensor:
    """[S, B] bool: the count [B] steps of each sample where values [S, B] are least."""
    return values.argsort(dim=0, stable=True).argsort(dim=0) < count


def estimators(problem: Problem, batch: Batch) -> dict[str, Tensor]:
    """What each rule would compare with its threshold before each step of the full run.

    The sampler's own scores where it skips nothing, of `AdaptiveConfig`'s left sides: third_order
    |third difference| / |first difference|, released its scalar counterpart, defect the predicted
    error of one step on the linear fill (where the table's levels are known).

    Returns name -> [T, B] float64; NaN where the rule has no score yet.
    """
    configs = {"third_order": AdaptiveConfig(1.0, 0, criterion="third_order")}
    configs["released"] = AdaptiveConfig(NEVER, 1, criterion="released")
    if problem.table().levels is not None:
        configs["defect"] = AdaptiveConfig(1.0, 0, criterion="defect", warmup=3)
    return {
        name: sampled(config)(problem, batch).score.double() * config.threshold
        for name, config in configs.items()
    }


@dataclass(frozen=True)
class Measured:
    """Estimators, costs and greedy decisions of B samples; T steps."""

    estimates: dict[str, Tensor]  # name -> [T, B] float64
    costs: dict[str, Tensor]  # fill -> [T, B] float64: the error where that step alone is skipped
    found: dict[str, GreedyPaths]  # fill -> the greedy paths
    psnr: dict[str, Tensor]  # fill -> [B], dB of these paths' images against the full run's

    def skipped(self, fill: str) -> Tensor:
        """[T, B] bool: the greedy path's decisions."""
        return ~self.found[fill].called().T

    def usable(self) -> Tensor:
        """[T] bool: the steps where every estimator has a value for every sample."""
        return torch.stack([x.isfinite().all(1) for x in self.estimates.values()]).all(0)

    def rows(self) -> list[dict]:
        """One dict per fill and estimator; rank correlations with the true cost, and chi_square.

        spearman_mean, _std: over the samples, of each one's correlation over its steps; _pooled:
        of all steps of all samples together; _within: mean over the steps, of the correlation over
        the samples, None where that says nothing. The estimator skips where it is least, as often
        as that sample's greedy path. "other samples": their mean cost, all a fixed schedule knows.
        """
        rows, use = [], self.usable()
        for fill, cost in self.costs.items():
            known, skipped = cost[use], self.skipped(fill)[use]
            estimates = {name: x[use] for name, x in self.estimates.items()}
            if (samples := known.shape[1]) > 1:
                estimates[OTHERS] = (known.sum(1, keepdim=True) - known) / (samples - 1)
            for name, x in estimates.items():
                own, chosen = spearman(x.T, known.T), lowest(x, skipped.sum(0))
                pairs = [(a & b).sum() for a in (chosen, ~chosen) for b in (skipped, ~skipped)]
                row = {"fill": fill, "estimator": name, "spearman_mean": own.mean().item()}
                row["spearman_std"] = own.std(correction=0).item()
                row["spearman_pooled"] = spearman(x.flatten(), known.flatten()).item()
                within = spearman(x, known).mean().item()
                row["spearman_within"] = None if name == OTHERS or within != within else within
                rows.append(row | chi_square(torch.stack(pairs).view(2, 2)))
        return rows


def measure(
    problem: Problem, batch: Batch, calls: int, mode: str = "shortlist", progress: bool = False
) -> Measured:
    """Sample in full, skip each step alone, and search greedy paths of `calls` calls.

    Raises: ValueError as `Oracle` and its search do.
    """
    costs, found, db = {}, {}, {}
    for fill in FILLS if problem.table().levels is not None else FILLS[:1]:
        oracle = Oracle(problem, batch, fill)
        found[fill] = oracle.search(calls, mode, progress)
        costs[fill] = oracle.single_costs()
        full = problem.decode(oracle.full.final.view(batch.noise.shape))
        db[fill] = psnr(problem.decode(found[fill].latents), full)
    return Measured(estimators(problem, batch), costs, found, db)


def write(
    out: Path, measured: Measured, labels: Tensor, names: Sequence[str], title: str = ""
) -> dict[str, list[dict]]:
    """Write oracle.csv and oracle.png, and give {"agreement": rows, "paths": rows}.

    oracle.csv: a line per sample and step, with the estimators, the true costs and the greedy
    decisions (1: skipped). paths: PSNR of the greedy paths and the network calls of the search.
    """
    columns = {**measured.estimates}
    for fill, cost in measured.costs.items():
        columns |= {f"cost_{fill}": cost, f"skipped_{fill}": measured.skipped(fill).double()}
    groups = [names[label] for label in labels.tolist()]
    with appearing(out / "oracle.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("sample", "group", "step", *columns))
        for b, group in enumerate(groups):
            for i in range(len(measured.usable())):
                values = (x[i, b].item() for x in columns.values())
                writer.writerow((b, group, i, *("" if v != v else f"{v:.6g}" for v in values)))
    agreement = measured.rows()
    with appearing(out / "oracle.png") as path:
        picture(path, measured, agreement, groups, title)
    paths = []
    for fill, found in measured.found.items():
        row = {"fill": fill, "calls": int(found.called()[0].sum()), "evaluated": found.evaluated}
        row["psnr_db"] = measured.psnr[fill].mean().item()
        paths.append(row | {"worst_tenth_db": worst_tenth(measured.psnr[fill])})
    return {"agreement": agreement, "paths": paths}


def table(rows: Sequence[dict]) -> str:
    """Rows of equal keys as a Markdown table, padded so that it also reads as plain text."""
    shown = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    widths = [max(map(len, column)) for column in zip(rows[0], *shown, strict=True)]
    lines = ([*rows[0]], ["-" * width for width in widths], *shown)
    padded = ((c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def picture(
    path: Path, measured: Measured, rows: Sequence[dict], groups: Sequence[str], title: str
) -> None:
    """Draw estimators and greedy decisions of three samples, and estimators against true costs.

    The line in the lower panels: medians of twelve equal shares of the steps of all samples.
    path: the PNG file to write; rows: `measured.rows()`; groups: a name of each sample.

    Source: figures 4 and 5 of AdaptiveDiffusion (arXiv 2410.09873).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    def log(axis) -> None:
        low, high = axis.get_view_interval()
        subs = (1, 3) if high < 1000 * low else (1,)
        axis.set(major_locator=LogLocator(subs=subs), major_formatter="{x:g}")
        axis.set_minor_formatter("")

    figure = Figure(figsize=(13, 9), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, size=11, weight="bold", x=0.01, ha="left")
    grid = figure.subplots(3, 3, squeeze=False, height_ratios=(8, 1.4, 8))
    steps, samples = next(iter(measured.estimates.values())).shape
    for axes in grid.flatten():
        axes.tick_params(labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_visible(False)
    for k, b in enumerate(torch.linspace(0, samples - 1, 3).round().int().unique().tolist()):
        curves, marks = grid[:2, k]
        for name, x in measured.estimates.items():
            curves.plot(x[:, b].numpy(), label=name, color=COLORS[name], linewidth=1.8)
        for y, (fill, cost) in enumerate(measured.costs.items()):
            label, color = f"true cost of one skip, {fill}", COLORS[fill]
            curves.plot(cost[:, b].numpy(), "--", label=label, color=color, linewidth=1.2)
            at = measured.skipped(fill)[:, b].nonzero()[:, 0].tolist()
            marks.scatter(at, [y] * len(at), s=8, marker="s", color=color)
        curves.set(visible=True, yscale="log", xlim=(-0.5, steps - 0.5), title=f"{groups[b]} ({b})")
        log(curves.yaxis)
        marks.set(visible=True, xlim=(-0.5, steps - 0.5), ylim=(len(measured.costs) - 0.5, -0.5))
        marks.set_yticks(range(len(measured.costs)), measured.costs)
        marks.set_xlabel("step; squares: skipped by the greedy path", size=9)
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]), fontsize=9)
    when = torch.arange(steps)[(use := measured.usable()), None].expand(-1, samples).flatten()
    for axes, (name, x) in zip(grid[2], measured.estimates.items(), strict=False):
        fill = "linear" if name == "defect" else "reuse"
        x, y = x[use].flatten(), measured.costs[fill][use].flatten()
        dots = axes.scatter(x.numpy(), y.numpy(), s=6, c=when.numpy(), cmap="viridis", alpha=0.7)
        middle = [[v[part].median().item() for part in x.argsort().chunk(12)] for v in (x, y)]
        axes.plot(*middle, "o-", color="black", markersize=4, linewidth=1.2)
        row = next(r for r in rows if (r["estimator"], r["fill"]) == (name, fill))
        note = f"Spearman {row['spearman_pooled']:.2f}, Cramer's V {row['cramers_v']:.2f}"
        axes.set(visible=True, xscale="log", yscale="log", xlabel=name, title=note)
        axes.set_ylabel(f"true cost of one skip, {fill}", size=9)
        log(axes.xaxis), log(axes.yaxis)
    figure.colorbar(dots, ax=grid[2], label="step")
    figure.savefig(path, format="png")
