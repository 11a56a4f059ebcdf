"""The picture of the comparison: samples per second by way, and by slots."""

from os import PathLike
from typing import Any

from adaptive_kernels.pictures import DPI, figure_of


def picture(path: str | PathLike, report: dict[str, Any]) -> None:
    """Bars for the ways, with the bound T / NFE of the engine; at the right the scaling."""
    figure = figure_of(1000, 380)
    bars, curve = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = report["rows"]
    places = range(len(rows))
    colors = ["0.75" if row["name"] != "engine" else "tab:blue" for row in rows]
    bars.barh(places, [row["samples_per_second"] for row in rows], color=colors)
    bars.set_yticks(places, [f"{row['name']}\n{row['mean_nfe']:.1f} calls" for row in rows], size=8)
    for place, row in zip(places, rows, strict=True):
        text = f" {row['samples_per_second']:.1f} ({row['speed_up']:.2f}x)"
        bars.text(row["samples_per_second"], place, text, va="center", size=8)
    engine = next(row for row in rows if row["name"] == "engine")
    bound = rows[0]["samples_per_second"] * engine["steps_over_nfe"]
    bars.axvline(bound, color="tab:red", linewidth=1)
    bars.text(bound, -0.75, "T / mean NFE", color="tab:red", size=8, ha="center")
    bars.invert_yaxis()
    most = max(bound, *(row["samples_per_second"] for row in rows))
    bars.set(xlabel="samples per second", xlim=(0, 1.25 * most))
    slots = [int(n) for n in report["scaling"]]
    curve.plot(slots, list(report["scaling"].values()), "o-", color="tab:blue")
    curve.set(xscale="log", xlabel="slots", ylabel="samples per second", ylim=(0, None))
    curve.set_xticks(slots, [str(n) for n in slots])
    curve.minorticks_off()
    for axes in (bars, curve):
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI, format="png")
