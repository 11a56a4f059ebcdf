"""The picture of a sampling's decisions, and what every picture of the package is drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
COLORS = "RdBu_r"


def decisions_picture(
    path: str | PathLike,
    refreshed: Tensor,  # [T, B] bool
    score: Tensor,  # [T, B] float
    labels: Tensor | None = None,  # [B] int64
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Draw who refreshed when: a line per sample, a column per step, a dot per refresh.

    A cell's colour is the criterion's value that decided the step, on a log scale around 1, the
    threshold; grey where there is none. Above: the share of samples that refresh at each step, and
    the median value with its 10 % and 90 % quantiles. At the right: each sample's NFE.

    Args:
        path: the PNG file to write.
        refreshed: [T, B] bool, whether the sample called the network at the step.
        score: [T, B] real, left side of the criterion over its right side; NaN where none.
        labels: [B] int64 class of each sample; None puts all into one group.
        class_names: name of each class; None names them by number.
        title: one line at the top.

    Raises:
        ValueError: the shapes differ or are empty.

    Source: figure 4 of AdaptiveDiffusion (arXiv 2410.09873).
    """
    shape, other = tuple(refreshed.shape), tuple(score.shape)
    if shape != other or len(shape) != 2 or 0 in shape:
        raise ValueError(f"refreshed and score must be [T, B], got {shape} and {other}")
    from matplotlib import colormaps
    from matplotlib.ticker import LogLocator

    groups = groups_of(refreshed.shape[1], labels, class_names)
    order = [b for _, ids in groups for b in ids]
    called, value = refreshed.detach().cpu()[:, order], score.detach().double().cpu()[:, order]
    steps, batch = called.shape
    width = max(520, round(steps * min(max(900 / steps, 2), 40)))
    height = max(110, round(batch * min(max(600 / batch, 3), 26)))
    left, curve, gap = 110, 110, 16
    page = (left + width + 150, 40 + 2 * (curve + gap) + height + 48)
    figure = figure_of(*page)
    figure.text(12 / page[0], 1 - 24 / page[1], title, size=11, weight="bold")

    def panel(top: int, height: int, x: int = left, width: int = width) -> Axes:
        box = (x / page[0], 1 - (top + height) / page[1], width / page[0], height / page[1])
        axes = figure.add_axes(box, xlim=(-0.5, steps - 0.5))
        axes.tick_params(labelsize=8, labelbottom=False)
        return axes

    axes = panel(40, curve)
    axes.step(range(steps), called.double().mean(1).numpy(), where="mid", color="black")
    axes.set(ylim=(-0.03, 1.03), ylabel="share that\nrefreshes")
    axes = panel(40 + curve + gap, curve)
    low, middle, high = value.nanquantile(torch.tensor([0.1, 0.5, 0.9]).double(), dim=1).numpy()
    axes.fill_between(range(steps), low, high, color="0.85", linewidth=0)
    axes.plot(middle, ".-", color="black", markersize=4)
    axes.axhline(1, color="tab:red", linewidth=1)
    axes.set(yscale="log", ylabel="score\n(median)")
    axes.yaxis.set(major_locator=LogLocator(subs=(1, 3)), major_formatter="{x:g}")
    axes.tick_params(which="minor", labelleft=False)

    top = 40 + 2 * (curve + gap)
    axes = panel(top, height)
    decades = value.log10().T
    finite = decades[decades.isfinite()].abs()
    reach = 10 ** (float(finite.quantile(0.98).clamp(0.3, 2)) if len(finite) else 1.0)
    image = axes.imshow(
        value.T.clamp(1 / reach, reach).numpy(),
        cmap=colormaps[COLORS].with_extremes(bad="0.8"),
        norm="log",
        vmin=1 / reach,
        vmax=reach,
        aspect="auto",
        interpolation="nearest",
    )
    dot = max(1.0, 0.3 * min(width / steps, height / batch))
    axes.scatter(*called.nonzero().T.numpy(), s=dot**2, c="black", ec="white", lw=0.15 * dot)
    axes.set(xlabel="step", yticks=[])
    axes.tick_params(labelbottom=True)
    if height / batch >= 8:
        axes.text(steps, -0.8, "NFE", va="bottom", size=8)
        for b, calls in enumerate(called.sum(0).tolist()):
            axes.text(steps, b, calls, va="center", size=7)
    edge = -0.5
    for name, ids in groups:
        axes.text(-1.2, edge + len(ids) / 2, name, ha="right", va="center", size=9)
        edge += len(ids)
        axes.axhline(edge, color="white", linewidth=1.5)
    bar = figure.colorbar(image, cax=panel(top, min(height, 240), left + width + 60, 14))
    ticks = (1 / reach, reach**-0.5, 1, reach**0.5, reach)
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.minorticks_off()
    bar.set_label("score (grey: none)\ndot: refresh\n(on blue: forced)", size=8)
    figure.savefig(path, dpi=DPI, format="png")


def figure_of(width: int, height: int) -> Figure:  # in pixels
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def groups_of(
    batch: int, labels: Tensor | None, class_names: Sequence[str] | None
) -> list[tuple[str, list[int]]]:
    if labels is None:
        return [("", list(range(batch)))]
    if labels.shape != (batch,):
        raise ValueError(f"labels must be [{batch}], got the shape {tuple(labels.shape)}")
    names = {c: str(c) if class_names is None else class_names[c] for c in labels.unique().tolist()}
    return [(name, (labels == c).nonzero()[:, 0].tolist()) for c, name in names.items()]
