"""The pictures of a comparison: quality against calls, calls per sample, decisions, an ablation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adaptive_kernels.demo.pictures import samples_picture
from adaptive_kernels.pictures import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The lines a reader looks for; the others stay in the background.
STRONG = {
    "defect": "tab:red",
    "plan": "black",
    "every+linear": "tab:green",
    "third_order": "tab:blue",
    "fewer_steps": "tab:orange",
}
# Told apart by tint and marker, light enough to lie behind.
MUTED = ("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#c7c7c7", "#9edae5")
MARKERS = "os^Dv"
PANEL = (380, 300)


def psnr_picture(path: str | PathLike, table: Sequence[dict]) -> None:
    """Draw PSNR against network calls, one panel per cell, solvers below each other.

    With one number of steps the panels stand two in a row.

    Line: mean over the samples; dashed, for the methods of STRONG alone: mean of the worst tenth.
    The full run, infinite by definition, is named at the right. What lies below all lines of
    STRONG or far right of them is cut off.

    Args:
        path: the PNG file to write.
        table: as `table.rows` gives it.

    Raises:
        ValueError: the table has no row.
    """
    if not table:
        raise ValueError("table must have a row, got none")
    solvers = list(dict.fromkeys(map(_solver, table)))
    counts = list(dict.fromkeys(row["steps"] for row in table))
    drawn = [row for row in table if row["psnr_db"] is not None]
    names = {row["method"] for row in table}
    styles = _styles([m for m in STRONG if m in names] + sorted(names - {*STRONG, "full"}))
    left, top, gap, legend = 60, 34, 66, 190
    cells = list(itertools.product(solvers, counts))
    columns = len(counts) if len(counts) > 1 else min(2, len(cells))
    width = left + columns * (PANEL[0] + gap) + legend
    height = max(top + -(-len(cells) // columns) * (PANEL[1] + gap), 60 + 20 * (len(styles) + 2))
    figure = _figure(width, height)
    lines = {}
    for i, (solver, steps) in enumerate(cells):
        row, column = divmod(i, columns)
        x, y = left + column * (PANEL[0] + gap), top + row * (PANEL[1] + gap)
        box = (x / width, 1 - (y + PANEL[1]) / height, PANEL[0] / width, PANEL[1] / height)
        axes = figure.add_axes(box)
        axes.set_title(f"{solver}, {steps} steps", size=10, weight="bold", loc="left")
        axes.set_title(f"full: {steps} calls \N{RIGHTWARDS ARROW}", size=9, loc="right")
        axes.grid(color="0.92", linewidth=0.8)
        axes.tick_params(labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="mean network calls (NFE)", ylabel="PSNR, dB" if column == 0 else "")
        floor, reach = [], []
        for name, style in styles.items():
            points = {
                (r["nfe_mean"], r["psnr_db"], r["worst_tenth_db"])
                for r in drawn
                if (_solver(r), r["steps"], r["method"]) == (solver, steps, name)
            }
            calls, mean, worst = zip(*sorted(points), strict=True) if points else ((), (), ())
            lines[name] = axes.plot(calls, mean, **style)[0]
            if name in STRONG:
                axes.plot(calls, worst, "--", color=style["color"], linewidth=1, zorder=3)
                floor += worst
                reach += calls
        if floor:
            axes.set_ylim(bottom=max(min(floor) - 1, axes.get_ylim()[0]))
            axes.set_xlim(right=min(1.2 * max(reach), axes.get_xlim()[1]))
    for name, style in (("mean", "-"), ("worst tenth", "--")):
        (lines[name],) = axes.plot([], [], style, color="0.3", linewidth=2 - (name != "mean"))
    figure.legend(
        lines.values(),
        lines.keys(),
        loc="upper right",
        bbox_to_anchor=(1 - 8 / width, 1 - 20 / height),
        fontsize=9,
        frameon=False,
    )
    figure.savefig(path, dpi=DPI, format="png")


def _solver(row: dict) -> str:
    return row["solver"] if row["dtype"] == "float32" else f"{row['solver']} {row['dtype']}"


def nfe_picture(
    path: str | PathLike,
    nfe: Tensor,  # [B] real
    labels: Tensor,  # [B] int64
    group_names: Sequence[str],
    title: str = "",
) -> None:
    """Draw how many samples made how many network calls, and below it the samples of each group.

    A dot is a sample, the bar a group's mean.

    Args:
        path: the PNG file to write.
        nfe: [B] network calls of each sample.
        labels: [B] int64 group of each sample.
        group_names: name of each group.
        title: one line at the top.

    Raises:
        ValueError: there is no sample, or nfe and labels differ in shape.

    Source: figures 1 and 8 of AdaptiveDiffusion (arXiv 2410.09873).
    """
    if nfe.dim() != 1 or nfe.shape != labels.shape or not len(nfe):
        raise ValueError(
            f"nfe and labels must be [B], B > 0, got {tuple(nfe.shape)} and {tuple(labels.shape)}"
        )
    nfe = nfe.double()
    groups = labels.unique().tolist()
    width, left, top, bars, row = 720, 130, 40, 220, 26
    height = top + bars + 16 + row * len(groups) + 48
    figure = _figure(width, height)
    figure.text(12 / width, 1 - 24 / height, title, size=11, weight="bold")
    low, high = math.floor(nfe.min()) - 1, math.ceil(nfe.max()) + 1
    inner = (width - left - 20) / width

    def panel(y: int, size: int):
        box = (left / width, 1 - (y + size) / height, inner, size / height)
        axes = figure.add_axes(box, xlim=(low, high))
        axes.tick_params(labelsize=8)
        axes.axvline(float(nfe.mean()), color="tab:red", linewidth=1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        return axes

    axes = panel(top, bars)
    edges = [n - 0.5 for n in range(low, high + 2)]
    axes.hist(nfe.numpy(), bins=edges, color="0.6", edgecolor="white")
    axes.tick_params(labelbottom=False)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(ylabel="samples")
    axes.text(float(nfe.mean()), axes.get_ylim()[1], f"  mean {nfe.mean():.1f}", va="top", size=8)

    axes = panel(top + bars + 16, row * len(groups))
    for y, group in enumerate(groups):
        calls = nfe[labels == group]
        # Equal values beside each other, so that every sample is seen.
        offset = torch.zeros_like(calls)
        for value in calls.unique():
            same = (calls - value).abs() < 0.25
            offset[same] = torch.linspace(-0.3, 0.3, int(same.sum()) + 2, dtype=torch.float64)[1:-1]
        axes.scatter(calls.numpy(), (y + offset).numpy(), s=9, color="0.45", linewidths=0)
        axes.plot([float(calls.mean())] * 2, [y - 0.4, y + 0.4], color="black", linewidth=2)
    axes.set(ylim=(len(groups) - 0.5, -0.5), xlabel="network calls of a sample (NFE)")
    axes.set_yticks(range(len(groups)), [_short(group_names[g]) for g in groups])
    figure.savefig(path, dpi=DPI, format="png")


def ablation_picture(
    path: str | PathLike,
    full: Tensor,  # [B, C, H, W]
    others: dict[str, tuple[Tensor, float]],  # name -> [B, C, H, W], mean PSNR in dB
    labels: Tensor,  # [B] int64
    group_names: Sequence[str],
) -> None:
    """Draw samples of other methods below the full run's, one of each group, with their PSNR.

    Args:
        path: the PNG file to write.
        full: [B, C, H, W] images in [-1, 1].
        others: name -> (images of the same shape, mean PSNR in dB).
        labels: [B] int64 group of each sample.
        group_names: name of each group.

    Raises:
        ValueError: the shapes do not fit together.

    Source: figure 3 of AdaptiveDiffusion (arXiv 2410.09873).
    """
    rows = {"full": full}
    rows |= {f"{name}\n{db:.1f} dB": images for name, (images, db) in others.items()}
    samples_picture(path, rows, labels, [_short(n) for n in group_names], per_class=1)


def _styles(names: Sequence[str]) -> dict[str, dict]:
    styles, muted = {}, itertools.count()
    for name in names:
        if name in STRONG:
            style = {"color": STRONG[name], "marker": ".", "linewidth": 2.2, "zorder": 3}
        else:
            i = next(muted)
            style = {"color": MUTED[i % len(MUTED)], "marker": MARKERS[i % len(MARKERS)]}
            style |= {"linewidth": 1.2, "markersize": 4, "zorder": 2}
        styles[name] = style
    return styles


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def _figure(width: int, height: int) -> Figure:  # in pixels
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure
