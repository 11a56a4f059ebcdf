"""Where a run begins: at which row of a schedule, and from what."""

import inspect
from typing import Any

import torch
from torch import Tensor

from .reading.config import config_of

ROUNDINGS = ("down", "up")


def has_own_strength(scheduler: Any) -> bool:
    """Whether its set_timesteps() shortens the schedule by itself (LCM, TCD)."""
    return "strength" in inspect.signature(scheduler.set_timesteps).parameters


def check_strength(strength: Any, rounding: Any, index: Any) -> None:
    """Raise ValueError unless the arguments go together, whatever the schedule."""
    if rounding not in (None, *ROUNDINGS):
        raise ValueError(f"strength_rounding must be 'down' or 'up', got {rounding!r}")
    if strength is None:
        if rounding is not None:
            raise ValueError(f"strength_rounding needs a strength, got {rounding!r} without one")
        return
    if index:
        raise ValueError(f"strength and begin_index exclude each other, got {strength} and {index}")
    if (
        isinstance(strength, bool)
        or not isinstance(strength, (int, float))
        or not 0 < strength <= 1
    ):
        raise ValueError(f"strength must be in (0, 1], got {strength!r}")


def first_row(
    count: int,
    stages: int,
    steps: int | None,
    strength: float | None,
    rounding: str | None,
    index: int,
) -> int:
    """Return the first row to run, counted as image-to-image pipelines count.

    count: rows of the schedule, `stages` for a solver step. steps: solver steps asked for; None: as
    many as rows. strength: the share of them to run, rounded "up", or down; None: from `index` on.
    Raises: ValueError naming the argument.
    """
    if strength is None:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise ValueError(f"begin_index must be an int in [0, {count - 1}], got {index!r}")
        if index % stages:
            raise ValueError(f"begin_index must be a multiple of the {stages} stages, got {index}")
        return index
    steps = count if steps is None else steps
    # In the pipelines' own arithmetic, whose float64 roundings decide where N s is whole.
    if rounding == "up":
        left_out = int(max(steps - min(steps * strength, steps), 0))
    else:
        left_out = steps - int(steps * strength)
    if left_out * stages >= count:
        raise ValueError(f"strength must leave a step to run, got {strength} of {steps} steps")
    return left_out * stages


def added_noise(scheduler: Any, timesteps: Tensor) -> tuple[float, float] | None:
    """Weights of the clean latents and of the noise in the latents of timesteps[0], or None.

    add_noise(clean, noise, t_0) = a * clean + b * noise (scale_noise in flow matching); None where
    the scheduler has neither, or one that fails or is no such sum. With `invert_sigmas` sigma is
    the share of the image (Mochi). scheduler: begin index set; it is used up.
    """
    clean = torch.tensor([1.0, 0.0, 50.0, 7.0], dtype=torch.float64).reshape(1, 1, 4, 1)
    noise = torch.tensor([0.0, 1.0, 0.0, 30.0], dtype=torch.float64).reshape(1, 1, 4, 1)
    try:
        if hasattr(scheduler, "add_noise"):
            mixed = scheduler.add_noise(clean, noise, timesteps[:1])
        elif hasattr(scheduler, "scale_noise"):
            mixed = scheduler.scale_noise(clean, timesteps[:1], noise)
        else:
            return None
        a, b, more, both = mixed.flatten().tolist()
    except Exception:  # whatever it is, latents cannot begin there
        return None
    error = abs(more - 50 * a) + abs(both - 7 * a - 30 * b)
    # As float32 has it, where it casts.
    if not error <= 1e-5 * (50 * abs(a) + 30 * abs(b)):
        return None
    return (b, a) if config_of(scheduler).get("invert_sigmas") else (a, b)
