"""The picture of the comparison: speed-ups by way, and samples per second by slots."""

from os import PathLike
from typing import Any

from adaptive_kernels.pictures import DPI, figure_of


def picture(path: str | PathLike, report: dict[str, Any]) -> None:
    """Bars for the ways, with the bound T / mean NFE; at the right the engine by its slots."""
    figure = figure_of(1000, 380)
    bars, curve = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = report["rows"]
    places = range(len(rows))
    colors = ["0.75" if row["name"] != "engine" else "tab:blue" for row in rows]
    ups = [row["speed_up"] for row in rows]
    bars.barh(places, ups, color=colors)
    bars.set_yticks(places, [f"{row['name']}\n{row['mean_nfe']:.1f} calls" for row in rows], size=8)
    for place, row in zip(places, rows, strict=True):
        low, *_, high = row["speed_ups"] if len(row["speed_ups"]) > 1 else row["speed_ups"] * 2
        bars.plot((low, high), (place, place), color="black", linewidth=1)
        text = f"{row['speed_up']:.2f}x"
        bars.text(0.03, place, text, va="center", size=9, weight="bold")
    engine = next(row for row in rows if row["name"] == "engine")
    bound = engine["steps_over_nfe"]
    bars.axvline(bound, color="tab:red", linewidth=1)
    bars.text(bound, -0.75, "T / mean NFE", color="tab:red", size=8, ha="center")
    bars.invert_yaxis()
    most = max(bound, *(row["speed_ups"][-1] for row in rows))
    bars.set(xlabel="speed-up over plain batches (median; line: all rounds)", xlim=(0, 1.05 * most))
    slots = [int(n) for n in report["scaling"]]
    curve.plot(slots, list(report["scaling"].values()), "o-", color="tab:blue")
    curve.set(xscale="log", xlabel="slots", ylabel="samples per second", ylim=(0, None))
    curve.set_xticks(slots, [str(n) for n in slots])
    curve.minorticks_off()
    for axes in (bars, curve):
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI, format="png")
