"""The picture of a calibration: quality against network calls."""

from collections.abc import Mapping
from importlib.util import find_spec
from os import PathLike

DPI = 100


def tradeoff_picture(path: str | PathLike, report: Mapping) -> None:
    """Draw PSNR against network calls for the settings tried, the chosen one and held-out samples.

    Does nothing without matplotlib.

    Args:
        path: the PNG file to write.
        report: with "curve" (points with "nfe", "psnr_db", "psnr_db_worst_tenth"), "chosen" (such a
            point with "held_out", another one), "solver", "num_steps", "criterion", "samples".
    """
    if find_spec("matplotlib") is None:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = sorted(report["curve"], key=lambda point: point["nfe"])
    nfe = [point["nfe"] for point in points]
    for name, label, style in (
        ("psnr_db", "tuned, mean", "o-"),
        ("psnr_db_worst_tenth", "tuned, worst tenth", "o--"),
    ):
        axes.plot(nfe, [p[name] for p in points], style, color="tab:blue", ms=4, lw=1, label=label)
    chosen, held = report["chosen"], report["chosen"]["held_out"]
    axes.plot(
        chosen["nfe"], chosen["psnr_db"], "o", ms=11, mfc="none", color="black", label="chosen"
    )
    for name, label, marker in (
        ("psnr_db", "held out, mean", "D"),
        ("psnr_db_worst_tenth", "held out, worst tenth", "d"),
    ):
        axes.plot(held["nfe"], held[name], marker, color="tab:red", label=label)
    label = f"network calls per sample, of {report['num_steps']}"
    axes.set(xlabel=label, ylabel="PSNR against the full run, dB")
    axes.set_title(
        f"{report['criterion']}, {report['solver']}, {report['num_steps']} steps; "
        f"{report['samples']['tuned']} samples tuned, {report['samples']['held_out']} held out",
        size=10,
    )
    axes.grid(color="0.92")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=DPI, format="png")
