"""Quality against network calls: distance to the full run, and to the limit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from os import PathLike

from adaptive_kernels.pictures import DPI

from .sheet import sheet

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
# Of the picture of the limit: rows of the plain solver, and of the rule.
PLAIN = ("full", "fewer_steps")
SKIPPING = ("defect", "defect, default")


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
    figure = sheet(width, height)
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


def limit_picture(path: str | PathLike, table: Sequence[dict]) -> None:
    """Draw PSNR to the limit against network calls, a panel per solver, two in a row.

    Lines: the plain solver with as many steps as calls, `defect` on the largest number of steps,
    and `AdaptiveConfig.recommended(calls=)`. Dotted: the full run of that number of steps.

    Args:
        path: the PNG file to write.
        table: as `table.rows` gives it.

    Raises:
        ValueError: no row has a distance to the limit.
    """
    table = [row for row in table if row["limit_db"] is not None]
    if not table:
        raise ValueError("table must have a row with a limit_db, got none")
    solvers = list(dict.fromkeys(map(_solver, table)))
    columns, left, top, gap = min(2, len(solvers)), 60, 34, 66
    width = left + columns * (PANEL[0] + gap)
    height = top + -(-len(solvers) // columns) * (PANEL[1] + gap)
    figure = sheet(width, height)
    for i, solver in enumerate(solvers):
        row, column = divmod(i, columns)
        x, y = left + column * (PANEL[0] + gap), top + row * (PANEL[1] + gap)
        axes = figure.add_axes(
            (x / width, 1 - (y + PANEL[1]) / height, PANEL[0] / width, PANEL[1] / height)
        )
        here = [r for r in table if _solver(r) == solver]
        steps = max(r["steps"] for r in here)
        lines = {
            "plain, as many steps as calls": [r for r in here if r["method"] in PLAIN],
            f"skipping on {steps} steps": [
                r for r in here if r["method"] in SKIPPING and r["steps"] == steps
            ],
            "skipping on 100 to 250 steps": [r for r in here if r["method"] == "recommended"],
        }
        colours = ("tab:orange", "tab:red", "black")
        for (name, rows), colour in zip(lines.items(), colours, strict=False):
            points = sorted({(r["nfe_mean"], r["limit_db"]) for r in rows})
            if points:
                axes.plot(*zip(*points, strict=True), ".-", color=colour, label=name)
        for db in [r["limit_db"] for r in here if (r["method"], r["steps"]) == ("full", steps)][:1]:
            axes.axhline(db, color="0.5", linestyle=":", linewidth=1)
            where = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
            axes.text(0.99, db, f"all {steps} calls", size=8, color="0.4", **where)
        axes.set_title(solver, size=10, weight="bold", loc="left")
        axes.grid(color="0.92", linewidth=0.8)
        axes.tick_params(labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(8, steps + 2)
        label = "PSNR to the limit, dB" if column == 0 else ""
        axes.set(xlabel="mean network calls (NFE)", ylabel=label)
        axes.legend(fontsize=8, loc="lower right", frameon=False)
    figure.savefig(path, dpi=DPI, format="png")


def _solver(row: dict) -> str:
    return row["solver"] if row["dtype"] == "float32" else f"{row['solver']} {row['dtype']}"


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
