"""Drive a diffusers scheduler's own scale_model_input() and step() on vectors, in float64.

The scheduler is only duck-typed: nothing here imports diffusers.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import ProbeError, StepFails
from .noise import Draw, Draws, Float64
from .quick import is_of_diffusers

# What the pipelines give to step(), beside the noise.
_DRIVEN = {
    *("model_output", "timestep", "sample"),
    *("old_pred_original_sample", "timestep_back", "prev_timestep"),
}


@dataclass(frozen=True)
class Run:
    """What a scheduler did with the vectors it was fed, one row per step."""

    inputs: Tensor  # [T, D] float64, what the network would be fed
    outputs: Tensor  # [T, D] float64, x_{i+1}
    estimates: Tensor | None  # [T, D] float64, the second value that step() returns, if it does
    draws: list[list[Draw]]


def check_step_kwargs(scheduler: Any, step_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for a keyword that step() does not know or that belongs to the sampler."""
    parameters = inspect.signature(scheduler.step).parameters
    driven = _DRIVEN | {"return_dict", "generator", "variance_noise"}
    for name in step_kwargs:
        if name in driven:
            raise ValueError(f"step_kwargs must not name {name!r}, which the sampler provides")
        if name not in parameters:
            free = sorted(set(parameters) - driven)
            raise ValueError(
                f"step_kwargs must name parameters of {type(scheduler).__name__}.step, "
                f"one of {free}, got {name!r}"
            )


def run(
    scheduler: Any,
    timesteps: Tensor,
    step_kwargs: Mapping[str, Any],
    sample_at: Callable[[int, Tensor | None], Tensor],
    output_at: Callable[[int], Tensor],
    noise_at: Callable[[int, int], Tensor],
    quick: bool = False,
    per_row: bool = False,
) -> Run:
    """Drive scale_model_input() and step() as the pipelines do.

    sample_at(i, what step i-1 returned), output_at(i), noise_at(i, number of the draw): the
    vectors to feed, all of one shape of four dimensions, D elements, float64.
    per_row: whether step() takes a timestep for every row of the batch.
    Raises ProbeError where step() needs more than that or gives values that are not finite.
    """
    parameters = inspect.signature(scheduler.step).parameters
    for name, parameter in parameters.items():
        if (
            parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and name not in _DRIVEN
            and name not in step_kwargs
        ):
            raise ProbeError(f"step() needs {name!r}, which a table cannot give it")
    fixed = dict(step_kwargs)
    if "return_dict" in parameters:
        fixed["return_dict"] = False

    generator = torch.Generator()
    if "generator" in parameters:
        fixed["generator"] = generator
    draws = Draws(noise_at, generator)
    if getattr(scheduler, "noise_sampler", False) is None and is_of_diffusers(type(scheduler)):
        # Theirs give normal numbers of unit variance, one interval of a Brownian path each.
        scheduler.noise_sampler = draws.path
    inputs, outputs, estimates = [], [], []
    result: tuple = (None, None)
    stood = generator.get_state()
    with nullcontext() if quick else Float64(draws):
        for i, t in enumerate(timesteps):
            x = sample_at(i, result[0])
            draws.begin(x)
            # Copies of what came and went: a scheduler may write into its arguments.
            inputs.append(_scaled(scheduler, i, x, t))
            if "old_pred_original_sample" in parameters:
                # CogVideoXDPMScheduler keeps no state: its pipeline hands the last x0 back.
                fixed["old_pred_original_sample"] = result[1]
                fixed["timestep_back"] = timesteps[i - 1] if i else None
            if "prev_timestep" in parameters:
                # UnCLIPScheduler takes t - 1 without it; its pipelines give the next timestep.
                fixed["prev_timestep"] = timesteps[i + 1] if i + 1 < len(timesteps) else None
            at = t.reshape(1).expand(len(x)) if per_row else t
            result = _call(scheduler, i, model_output=output_at(i), timestep=at, sample=x, **fixed)
            if result[0].shape != x.shape:
                raise ProbeError(
                    f"step {i} turns shape {tuple(x.shape)} into {tuple(result[0].shape)}"
                )
            outputs.append(result[0].flatten().double().clone())
            if isinstance(result[1], Tensor) and result[1].numel() == x.numel():
                estimates.append(result[1].flatten().double().clone())
    if quick and not torch.equal(generator.get_state(), stood):
        raise ProbeError("a step draws noise")
    fed, given = torch.stack(inputs), torch.stack(outputs)
    lost = ~(fed.isfinite() & given.isfinite()).all(dim=1)
    if lost.any():
        raise ProbeError(f"the scheduler's own step {int(lost.int().argmax())} gives NaN or Inf")
    whole = len(estimates) == len(outputs)
    return Run(
        *(fed.as_subclass(Tensor), given.as_subclass(Tensor)),
        estimates=torch.stack(estimates) if whole else None,
        draws=draws.rows,
    )


def _scaled(scheduler: Any, i: int, x: Tensor, t: Tensor) -> Tensor:
    """[D] float64: what the network would be fed."""
    scale = getattr(scheduler, "scale_model_input", None)
    if scale is None:
        return x.flatten().clone()
    try:
        fed = scale(x, t)
    except Exception as error:
        raise ProbeError(
            f"its scale_model_input() fails in step {i}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(fed, Tensor) or fed.shape != x.shape:
        raise ProbeError("scale_model_input() is not a multiple of the latents")
    return fed.flatten().double().clone()


def _call(scheduler: Any, i: int, **kwargs: Any) -> tuple:
    try:
        result = scheduler.step(**kwargs)
    except ProbeError:
        raise
    except Exception as error:
        raise StepFails(i, error) from error
    if not isinstance(result, tuple):
        latents = getattr(result, "prev_sample", None)
        result = (latents, getattr(result, "pred_original_sample", None))
    if not result or not isinstance(result[0], Tensor):
        raise ProbeError(f"step {i} returns no latents, as a tuple or as prev_sample")
    return result if len(result) > 1 else (result[0], None)
