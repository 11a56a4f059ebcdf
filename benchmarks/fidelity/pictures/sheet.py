"""The sheet that a picture of the laboratory is drawn on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_kernels.pictures import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sheet(width: int, height: int) -> Figure:  # in pixels
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure
