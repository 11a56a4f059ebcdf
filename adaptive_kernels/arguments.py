"""What a user gives to the sampler, checked where it comes in."""

import numbers

import torch
from torch import Tensor


def guidance_of(value) -> Tensor | None:
    if value is None:
        return None
    scale = _real("guidance_scale", value).detach().float().clone()
    if scale.dim() > 1:
        raise ValueError(f"guidance_scale must have shape () or (B,), got {tuple(scale.shape)}")
    if not bool(scale.isfinite().all()):
        raise ValueError(f"guidance_scale must be finite, got {value}")
    return None if scale.dim() == 0 and scale == 1.0 else scale


def _real(name: str, value) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be real numbers, got {value.dtype}")
        if value.is_meta:
            raise ValueError(f"{name} must have values, got a meta tensor")
        return value
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number or a tensor [B], got {value!r}")
    try:
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    except OverflowError:
        raise ValueError(f"{name} must fit float32, got {value!r}") from None


def threshold_of(value, batch: int) -> Tensor:
    value = _real("threshold", value)
    if tuple(value.shape) not in ((), (batch,)):
        raise ValueError(f"threshold must have shape () or ({batch},), got {tuple(value.shape)}")
    # Written so that NaN is refused.
    if not bool((value >= 0).all()):
        raise ValueError(f"threshold must be at least 0, got {value}")
    return value.float()


def seeds_of(seed, batch: int) -> Tensor:
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        return int(seed) + torch.arange(batch, device="cpu")
    try:
        seeds = seed if isinstance(seed, Tensor) else torch.as_tensor(seed, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"seed must be an int or {batch} ints (int64), got {seed!r}") from None
    if seeds.dtype != torch.int64 or tuple(seeds.shape) != (batch,):
        raise ValueError(
            f"seed must be an int or {batch} ints (int64), got {seeds.dtype} {tuple(seeds.shape)}"
        )
    return seeds


def expect(name, value, shape, device):
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {type(value).__name__}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device} as the noise is, got {value.device}")
