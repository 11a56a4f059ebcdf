"""Copies of a scheduler, each made for one purpose: the user's own stays as it is."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .drive import ProbeError


def start_weights(scheduler: Any, timesteps: Tensor) -> tuple[float, float]:
    """Weights of the clean latents and of the noise in what an image-to-image run starts from.

    add_noise(clean, noise, t_0) = a * clean + b * noise (scale_noise in flow matching); a
    scheduler with neither starts from pure noise. scheduler: begin index set; it is used up.
    """
    clean, noise = torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 2, 1)
    try:
        if hasattr(scheduler, "add_noise"):
            mixed = scheduler.add_noise(clean, noise, timesteps[:1])
        elif hasattr(scheduler, "scale_noise"):
            mixed = scheduler.scale_noise(clean, timesteps[:1], noise)
        else:
            return 0.0, float(getattr(scheduler, "init_noise_sigma", 1.0))
    except Exception as error:
        raise ProbeError(f"its add_noise() fails: {type(error).__name__}: {error}") from error
    a, b = mixed.flatten().tolist()
    return a, b


def prepare(
    scheduler: Any, num_inference_steps: int | None, set_timesteps_kwargs: Mapping[str, Any]
) -> Any:
    """Copy the scheduler onto the CPU and set its timesteps; the given one stays as it is."""
    twin = on_cpu(scheduler)
    if num_inference_steps is not None:
        set_timesteps_kwargs = {"num_inference_steps": num_inference_steps, **set_timesteps_kwargs}
    twin.set_timesteps(**set_timesteps_kwargs)
    return twin


def on_cpu(scheduler: Any) -> Any:
    """Copy the scheduler, with its tensors on the CPU."""
    twin = copy.deepcopy(scheduler)
    for name, value in vars(twin).items():
        if isinstance(value, Tensor):
            setattr(twin, name, value.cpu())
    return twin


def begin_at(scheduler: Any, index: int) -> Any:
    """Copy the scheduler and, where it can, tell the copy which of its timesteps comes first."""
    # Attributes alone are set anew, here and by the calls that follow: its tensors may be shared.
    twin = copy.copy(scheduler)
    if hasattr(twin, "set_begin_index"):
        twin.set_begin_index(index)
    return twin
