"""Copies of a scheduler, each made for one purpose: the user's own stays as it is."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .drive import ProbeError


def prepare(
    scheduler: Any, num_inference_steps: int | None, set_timesteps_kwargs: Mapping[str, Any]
) -> Any:
    """Copy the scheduler onto the CPU and set its timesteps; the given one stays as it is."""
    twin = on_cpu(scheduler)
    if num_inference_steps is not None:
        set_timesteps_kwargs = {"num_inference_steps": num_inference_steps, **set_timesteps_kwargs}
    try:
        twin.set_timesteps(**set_timesteps_kwargs)
    except (ValueError, TypeError, ImportError):
        raise
    except Exception as error:
        found = inspect.signature(twin.set_timesteps).parameters
        raise ProbeError(
            f"its set_timesteps() fails: {type(error).__name__}: {error}; it takes "
            f"{', '.join(name for name in found if name != 'device')}"
        ) from error
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
