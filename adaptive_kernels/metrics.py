"""How close two batches of images are, per sample and in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
K1 = 0.01
K2 = 0.03


def psnr(
    images: Tensor,  # [B, ...]
    reference: Tensor,  # [B, ...]
    data_range: float = 2.0,
) -> Tensor:  # [B] float64
    """Peak signal-to-noise ratio of each sample, in dB.

        psnr = 10 log10(data_range^2 / mean((images - reference)^2))

    Args:
        images: [B, ...] any real dtype.
        reference: [B, ...] of the same shape.
        data_range: distance between the largest and the smallest possible value; 2 for [-1, 1].

    Returns:
        [B] float64, in dB: inf where a sample is identical to its reference, NaN where one of the
        two has a NaN.

    Raises:
        ValueError: the shapes differ, a sample has no element, or data_range is not positive.
    """
    _check(images, reference, data_range)
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error)


def ssim(
    images: Tensor,  # [B, C, H, W]
    reference: Tensor,  # [B, C, H, W]
    data_range: float = 2.0,
) -> Tensor:  # [B] float64
    """Structural similarity of each sample: local means, variances and covariance compared.

        ssim = mean of (2 a b + c1)(2 cov + c2) / ((a^2 + b^2 + c1)(var_a + var_b + c2))

    over all channels and all positions of an 11x11 Gaussian window (sigma 1.5) that lies wholly
    inside the image; c1 = (0.01 data_range)^2, c2 = (0.03 data_range)^2.

    Args:
        images: [B, C, H, W] any real dtype, H and W at least 11.
        reference: [B, C, H, W] of the same shape.
        data_range: distance between the largest and the smallest possible value; 2 for [-1, 1].

    Returns:
        [B] float64, at most 1; 1 where a sample is identical to its reference.

    Raises:
        ValueError: the shapes differ, are not [B, C, H, W] or smaller than the window, or
            data_range is not positive.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to
        structural similarity", IEEE Transactions on Image Processing 13 (2004).
    """
    _check(images, reference, data_range)
    if images.dim() != 4:
        raise ValueError(f"images must be [B, C, H, W], got the shape {tuple(images.shape)}")
    if min(images.shape[2:]) < WINDOW:
        raise ValueError(
            f"images must be at least {WINDOW}x{WINDOW} (the window of SSIM), "
            f"got {images.shape[2]}x{images.shape[3]}"
        )
    a, b = images.double(), reference.double()
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a.square()
    var_b = _blur(b * b) - mean_b.square()
    cov = _blur(a * b) - mean_a * mean_b
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H - 10, W - 10]
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-offset.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    batch, channels, height, width = x.shape
    x = x.reshape(batch * channels, 1, height, width)
    x = F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return x.reshape(batch, channels, *x.shape[2:])


def _check(images: Tensor, reference: Tensor, data_range: float) -> None:
    if images.shape != reference.shape:
        raise ValueError(
            f"images must have the shape of reference {tuple(reference.shape)}, "
            f"got {tuple(images.shape)}"
        )
    if images.dim() < 2 or images.shape[1:].numel() == 0:
        raise ValueError(
            f"images must be [B, ...] with an element per sample, got {tuple(images.shape)}"
        )
    if not (data_range > 0 and math.isfinite(data_range)):
        raise ValueError(f"data_range must be positive and finite, got {data_range}")
