"""What a user gives to an engine, checked where it comes in."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..rules.config import AdaptiveConfig
from ..sampler import AdaptiveSampler
from ..sampling.network import adapted, network_dtype
from ..sampling.solver import warn_of_other_network
from ..solvers.start import check_strength
from ..solvers.table import SolverTable
from .slots.batch import Batch, one_scale
from .slots.solvers import Solvers


def batch_of(
    model: Callable,
    scheduler: Any,
    num_inference_steps: int | None,
    slots: int,
    shape: Sequence[int],
    config: AdaptiveConfig | None,
    guidance_scale: float | Tensor | None,
    *,
    unconditional: Mapping[str, Any] | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    gather: bool,
    strength_rounding: str | None,
    table_arguments: dict[str, Any],
) -> Batch:
    """Empty slots for the arguments of `Engine`, which says what they are.

    Raises: UnsupportedSchedulerError, ValueError, TypeError naming the argument.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    if isinstance(slots, bool) or not isinstance(slots, numbers.Integral):
        raise TypeError(f"slots must be an int, got {slots!r}")
    if slots < 1:
        raise ValueError(f"slots must be at least 1, got {slots}")
    if not isinstance(gather, bool):
        raise TypeError(f"gather must be a bool, got {gather!r}")
    shape = _shape(shape)
    check_strength(1.0, strength_rounding, 0)
    fixed = dict(table_arguments)
    if strength_rounding is not None and "strength" in fixed:
        fixed["strength_rounding"] = strength_rounding
    sampler = AdaptiveSampler(
        scheduler, num_inference_steps, config, guidance_scale, dtype, **fixed
    )
    config = sampler.config
    if config.granularity == "batch" and slots > 1:
        raise ValueError(
            "config must have granularity 'sample': samples of an engine stand at different "
            "steps and decide alone, got 'batch'"
        )
    own_steps = isinstance(scheduler, SolverTable) or {"timesteps", "sigmas"} & {*fixed}
    if num_inference_steps is None and not own_steps:
        num_inference_steps = config.num_inference_steps
    warn_of_other_network(config, model, 3)
    return Batch(
        adapted(model),
        Solvers(
            *(scheduler, sampler.table, config, num_inference_steps),
            *(strength_rounding, table_arguments),
        ),
        config,
        int(slots),
        shape,
        guidance_scale=one_scale(sampler.guidance_scale),
        unconditional=unconditional,
        dtype=dtype or network_dtype(model),
        device=_device(device, model),
        gather=gather,
    )


def _shape(shape: Any) -> tuple[int, ...]:
    found = tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else ()
    integers = all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in found)
    if not found or not integers or min(found) < 1:
        raise ValueError(
            f"shape must be that of one sample's latents, such as (4, 64, 64), got {shape!r}"
        )
    return tuple(map(int, found))


def _device(device: Any, model: Any) -> torch.device:
    if device is None:
        parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
        return next((p.device for p in parameters), torch.device("cpu"))
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch device, got {device!r}: {error}") from None
    # "cuda" is the current one by number: tensors are compared with it.
    return torch.empty(0, device=found).device
