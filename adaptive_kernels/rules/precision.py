"""How noisy a network's outputs are, by its dtype or as a user says."""

import math
import numbers

import torch
from torch import Tensor

from ..solvers.table import SolverTable

# A network's rounding adds up over its layers to about as much as one rounding of its outputs, 0.7
# to 1 of it on the shipped model; more than this is not taken for noise.
ALLOWED = 1.15


def noise_size(value: object) -> float | tuple[float, ...] | None:
    """`output_noise` of a config as it is kept: a number or one for each step.

    Args:
        value: None, a dtype, a number or a sequence of numbers.

    Raises: TypeError, ValueError naming `output_noise`.
    """
    if value is None:
        return None
    if isinstance(value, torch.dtype):
        return unit_of(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return _finite(value)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(
            "output_noise must be None, a dtype, a number or one number for each step, "
            f"got {value!r}"
        )
    sizes = value.tolist() if isinstance(value, Tensor) else list(value)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, numbers.Real):
            raise TypeError(f"output_noise must hold numbers, got {size!r}")
    if not sizes:
        raise ValueError("output_noise must have one number for each step, got none")
    return tuple(map(_finite, sizes))


def _finite(value: numbers.Real) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"output_noise must be at least 0 and finite, got {value}")
    return float(value)


def unit_of(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number of a dtype; 0 from float32 on.

    Raises: ValueError where it holds no floating-point numbers.
    """
    if not dtype.is_floating_point:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"output_noise must be a floating-point dtype or a number, got {name}: how noisy such "
            "a network is, `measure_output_noise` tells"
        )
    return 0.0 if dtype.itemsize >= 4 else torch.finfo(dtype).eps / 2


def computing_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a network computes in that is fed `dtype`: autocast's, where that is coarser."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        cast = torch.get_autocast_dtype(kind)
        if torch.finfo(cast).eps > torch.finfo(dtype).eps:
            return cast
    return dtype


def largest_noise(
    output_noise: float | tuple[float, ...] | None,
    dtype: torch.dtype,
    guidance_scale: Tensor | float | None,
) -> Tensor | float:
    """The most that counts as noise of guided outputs, rms; [B] float32 of a tensor of scales.

    ``1.15 size sqrt(g^2 + (1 - g)^2)``, the rms of ``mu + g (mc - mu)`` where mu and mc have noise
    of their own.

    Args:
        output_noise: the config's. dtype: what the network computes in, which tells where that is
            None.
        guidance_scale: [B] float32 or a number, alike; None without guidance.
    """
    size = unit_of(dtype) if output_noise is None else output_noise
    size = ALLOWED * (typical(size) if isinstance(size, tuple) else size)
    if guidance_scale is None:
        return size
    if not isinstance(guidance_scale, Tensor):
        return size * math.sqrt(guidance_scale**2 + (1 - guidance_scale) ** 2)
    g = guidance_scale.double()
    return (size * (g.square() + (1 - g).square()).sqrt()).float()


def noise_shares(table: SolverTable, w: Tensor, sizes: object) -> Tensor:
    """[T] float64: R of every step, the noise of u x + w m in units of s2.

    Args:
        sizes: of the noise by step, if it is known so; then s2 is that of their median.

    Raises: ValueError where there is not one for every step.
    """
    if not isinstance(sizes, tuple):
        return w.square()
    if len(sizes) != table.num_steps:
        raise ValueError(
            f"output_noise must be a number or one for each of the {table.num_steps} steps of "
            f"{table}, got {len(sizes)}"
        )
    usual = typical(sizes)
    relative = torch.tensor(sizes, dtype=torch.float64) / usual if usual else torch.ones_like(w)
    return (w * relative).square()


def typical(sizes: tuple[float, ...]) -> float:
    """The median of the sizes, the lower of two; the largest where that is zero."""
    return sorted(sizes)[(len(sizes) - 1) // 2] or max(sizes)
