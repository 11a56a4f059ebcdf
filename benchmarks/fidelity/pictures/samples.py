"""Samples one by one: network calls of each, and what an ablation does to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor

from adaptive_kernels.demo.pictures import samples_picture
from adaptive_kernels.pictures import DPI

from .sheet import sheet


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
    figure = sheet(width, height)
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


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
