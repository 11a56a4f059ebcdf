"""The picture of a run: which request stood in which slot, tick by tick."""

from os import PathLike

from ..pictures import DPI, figure_of
from .statistics import Record

# Hues that lie next to each other look apart.
_COLORS = 10
_TICKS = 400


def timeline_picture(path: str | PathLike, record: Record, title: str = "") -> None:
    """Draws slots by ticks, a bar for every request, and above them how many slots are in use.

    Of a long run the last ticks.

    Args:
        path: the PNG file to write. record: of the run. title: one line at the top.

    Raises: ValueError where the record is empty.
    """
    if not record.spans:
        raise ValueError("timeline_picture needs a run with a finished sample, got none yet")
    from matplotlib import colormaps

    first = max(record.ticks - _TICKS, 0)
    height = max(120, min(record.slots * 22, 900))
    page = (1000, height + 172)
    figure = figure_of(*page)
    if not title:
        mean = record.taken / (record.ticks * record.slots)
        title = (
            f"{record.done} samples through {record.slots} slots: {record.ticks} ticks, "
            f"{record.calls / record.done:.1f} NFE, {mean:.0%} of the slots in use"
        )
    figure.text(12 / page[0], 1 - 24 / page[1], title, size=11, weight="bold")

    def panel(top: int, height: int):
        box = (70 / page[0], 1 - (top + height) / page[1], 910 / page[0], height / page[1])
        axes = figure.add_axes(box, xlim=(first, record.ticks))
        axes.tick_params(labelsize=8)
        return axes

    above = panel(40, 70)
    used = list(record.occupancy)[-(record.ticks - first) :]
    above.stairs(used, range(first, record.ticks + 1), color="black")
    above.set(ylim=(0, record.slots * 1.08), ylabel="in use")
    above.tick_params(labelbottom=False)
    axes = panel(122, height)
    hues = colormaps["tab10"]
    for span in record.spans:
        if span.last_tick < first:
            continue
        length = span.last_tick + 1 - span.first_tick
        color = hues(span.number % _COLORS)
        axes.barh(span.slot, length, left=span.first_tick, height=0.9, color=color, ec="white")
        if height / record.slots >= 12 and 910 * length / (record.ticks - first) >= 26:
            middle = span.first_tick + length / 2
            axes.text(
                *(middle, span.slot, span.number),
                **{"ha": "center", "va": "center", "size": 7, "color": "white", "clip_on": True},
            )
    for slot, began in record.under_way():
        axes.barh(slot, record.ticks - began, left=began, height=0.9, color="0.8", ec="white")
    axes.set(ylim=(record.slots - 0.5, -0.5), xlabel="tick (one network call)", ylabel="slot")
    figure.savefig(path, dpi=DPI, format="png")
