"""The picture of a comparison of samplers: the images, and what sets them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
from torch import Tensor

from ..pictures import COLORS, DPI, figure_of, groups_of

AMPLIFICATIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def samples_picture(
    path: str | PathLike,
    rows: Mapping[str, Tensor],  # name -> [B, C, H, W]
    labels: Tensor | None = None,  # [B] int64
    class_names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,  # [B]
    per_class: int = 4,
) -> None:
    """Draw images in rows, class beside class; below each row but the first, what sets it apart.

        difference = amplification * (row - first row), mean over channels; red: brighter

    The amplification, named at the row, is the largest round number that keeps 99 % in [-1, 1].

    Args:
        path: the PNG file to write.
        rows: name -> [B, C, H, W] images in [-1, 1], C 1 or 3; values beyond are cut off.
        labels: [B] int64 class of each sample; None puts all into one group.
        class_names: name of each class; None names them by number.
        captions: a short text below each sample.
        per_class: at most this many samples of a class, the first ones, are drawn.

    Raises:
        ValueError: there is no image, or the shapes do not fit together.
    """
    images = {name: x.detach().float().cpu().clamp(-1, 1) for name, x in rows.items()}
    shapes = {tuple(x.shape) for x in images.values()}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(f"rows must be images [B, 1 or 3, H, W] of one shape, got {list(shapes)}")
    groups = [(name, ids[:per_class]) for name, ids in groups_of(shape[0], labels, class_names)]
    tiles = _tiles(images)

    zoom = max(1, round(64 / shape[3]))
    height, width = shape[2] * zoom + 2, shape[3] * zoom + 2
    left, top, bottom = 122, 28, 12 if captions is None else 38
    span = max(len(ids) for _, ids in groups) * width + 14
    bands = -(-len(groups) // max(1, 1400 // span))
    # Bands of equal length rather than full ones and a rest.
    per_band = -(-len(groups) // bands)
    pitch = top + len(tiles) * height + bottom
    canvas = np.full((bands * pitch, left + per_band * span, 3), 255, dtype=np.uint8)
    figure = figure_of(canvas.shape[1], canvas.shape[0])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for g, (title, ids) in enumerate(groups):
        x0, y0 = left + g % per_band * span, g // per_band * pitch + top
        axes.text(x0, y0 - 7, title, weight="bold", size=9)
        for row, (name, tile) in enumerate(tiles):
            y = y0 + row * height
            if x0 == left:
                axes.text(left - 8, y + height / 2, name, ha="right", va="center", size=9)
            for j, b in enumerate(ids):
                x = x0 + j * width
                canvas[y:, x:][: height - 2, : width - 2] = tile[b].repeat(zoom, 0).repeat(zoom, 1)
        y = y0 + len(tiles) * height + 2
        for j, b in enumerate(ids if captions is not None else ()):
            axes.text(x0 + (j + 0.5) * width, y, captions[b], ha="center", va="top", size=7)
    axes.imshow(canvas, interpolation="nearest", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    figure.savefig(path, dpi=DPI, format="png")


def _tiles(images: Mapping[str, Tensor]) -> list[tuple[str, np.ndarray]]:  # [B, H, W, 3] uint8
    from matplotlib import colormaps

    first, *others = images.values()
    reach = max((float((x - first).mean(1).abs().quantile(0.99)) for x in others), default=0.0)
    scale = max((a for a in AMPLIFICATIONS if a * reach <= 1), default=1)
    tiles = []
    for name, x in images.items():
        rgb = x.permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
        tiles.append((name, ((rgb + 1) * 127.5).round().byte().numpy()))
        if x is not first:
            share = ((x - first).mean(1) * scale + 1) / 2
            tiles.append(
                (f"difference x {scale}", colormaps[COLORS](share.numpy(), bytes=True)[..., :3])
            )
    return tiles
