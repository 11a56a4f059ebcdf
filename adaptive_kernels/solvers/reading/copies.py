"""Copies of a scheduler, each made for one purpose: the user's own stays as it is."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import ProbeError


def prepare(
    scheduler: Any, num_inference_steps: int | None, set_timesteps_kwargs: Mapping[str, Any]
) -> Any:
    """Copy the scheduler onto the CPU and set its timesteps; the given one stays as it is.

    Raises: what set_timesteps() says of its arguments, as ValueError or TypeError; else ProbeError.
    """
    twin = on_cpu(scheduler)
    taken = inspect.signature(twin.set_timesteps).parameters
    named, unnamed = dict(set_timesteps_kwargs), ()
    if num_inference_steps is not None:
        if "num_inference_steps" in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            named = {"num_inference_steps": num_inference_steps, **named}
        else:
            unnamed = (num_inference_steps,)
    try:
        twin.set_timesteps(*unnamed, **named)
    except (ValueError, TypeError, ImportError):
        raise
    except Exception as error:
        raise ProbeError(
            f"its set_timesteps() fails: {type(error).__name__}: {error}; it takes "
            f"{', '.join(name for name in taken if name != 'device')}"
        ) from error
    return twin


def on_cpu(scheduler: Any) -> Any:
    """Copy the scheduler, with its tensors on the CPU."""
    try:
        twin = copy.deepcopy(scheduler)
    except Exception as error:
        raise ProbeError(f"it cannot be copied: {type(error).__name__}: {error}") from error
    for name, value in vars(twin).items():
        if isinstance(value, Tensor):
            setattr(twin, name, value.cpu())
    return twin


def timesteps_of(scheduler: Any) -> Tensor:
    """[T]: the timesteps that its set_timesteps() has set."""
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or len(timesteps) == 0:
        raise ProbeError("its set_timesteps() sets no timesteps")
    timesteps = torch.as_tensor(timesteps)
    if timesteps.ndim != 1:
        raise ProbeError(f"its timesteps must be one row, got shape {tuple(timesteps.shape)}")
    return timesteps


def begin_at(scheduler: Any, index: int) -> Any:
    """Copy the scheduler and, where it can, tell the copy which of its timesteps comes first.

    A shallow copy: attributes alone are set anew, here and by the calls that follow.
    """
    twin = copy.copy(scheduler)
    if hasattr(twin, "set_begin_index"):
        twin.set_begin_index(index)
    return twin
