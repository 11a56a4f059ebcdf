"""Drive a diffusers scheduler's own scale_model_input() and step() on vectors, in float64.

The scheduler is only duck-typed: nothing here imports diffusers.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# No scheduler draws more often in one step; CogVideoXDPMScheduler draws twice and uses one.
DRAWS = 2

_CASTS = (Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as)
# What the pipelines give to step(), beside the noise.
_DRIVEN = {
    *("model_output", "timestep", "sample"),
    *("old_pred_original_sample", "timestep_back", "prev_timestep"),
}


class ProbeError(ValueError):
    """step() cannot be run on vectors of our choosing; the message says why."""


class StepFails(ProbeError):
    """The scheduler's own step() raised; what it raised is the cause.

    row: of the timesteps that were run.
    """

    def __init__(self, row: int, error: Exception) -> None:
        super().__init__(f"its own step {row} fails: {type(error).__name__}: {error}")
        self.row = row


class _Float64(TorchFunctionMode):
    """Keep vectors in float64 where a scheduler casts them, and give it the noise we choose.

    Only vectors: a scheduler's own scalars keep their dtype, so that the coefficients are the ones
    it uses, with the rounding of its float32 sigmas.
    """

    def __init__(self, draw: Callable[[dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.randn, torch.randn_like):
            return self.draw(kwargs or {})
        out = func(*args, **(kwargs or {}))
        if func in _CASTS and args[0].dtype == torch.float64 and args[0].ndim == 4:
            return args[0]
        return out


class Vector(Tensor):
    """A float64 tensor that stays so where a scheduler casts it; what is made of it is a Tensor.

    Half the time of `_Float64`, which sees every call: enough where step() draws nothing and casts
    nothing but its arguments. The closed loop on random data tells where it was not.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    def _itself(self, *_: Any, **__: Any) -> Tensor:
        return self

    to = float = half = bfloat16 = type = type_as = _itself


# Calls for noise: those of diffusers' own function, with what they are given, and any other.
_RANDN_TENSOR = re.compile(r"\brandn_tensor\((?:[^()]|\([^()]*\))*\)")
_OTHER_NOISE = re.compile(r"\b(?!randn_tensor\b)(rand\w*|normal_?|bernoulli_?)\(")


@functools.cache
def may_be_quick(scheduler: type) -> bool:
    """Whether all noise of a scheduler of diffusers comes from the generator that step() is given.

    A draw from that one is noticed; one from everybody's would have moved it.
    """
    source = ""
    for base in scheduler.__mro__[:-1]:
        if not base.__module__.startswith("diffusers."):
            return False
        try:
            source += inspect.getsource(base)
        except (OSError, TypeError):
            return False
    drawn = _RANDN_TENSOR.findall(source)
    given = all("generator=generator" in call for call in drawn)
    return given and len(drawn) == source.count("randn_tensor(") and not _OTHER_NOISE.search(source)


@dataclass(frozen=True)
class Draw:
    """One call of a step for standard normal noise."""

    dtype: torch.dtype | None  # None: that of the model output
    own: bool  # whether from the generator that step() is given, and not from the global one
    path: bool = False  # whether the scheduler's own noise_sampler gives it, from a Brownian path


@dataclass(frozen=True)
class Run:
    """What a scheduler did with the vectors it was fed, one row per step."""

    inputs: Tensor  # [T, D] float64, what the network would be fed
    outputs: Tensor  # [T, D] float64, x_{i+1}
    estimates: Tensor | None  # [T, D] float64, the second value that step() returns, if it does
    draws: list[list[Draw]]


class _Path:
    """Stands for a noise sampler over a Brownian path: independent draws, as of apart intervals."""

    def __init__(self, draws: list[list[Draw]], noise_at: Callable[[int, int], Tensor]) -> None:
        self.draws, self.noise_at = draws, noise_at
        self.seen: list[tuple[float, float]] = []

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        low, high = sorted((float(sigma), float(sigma_next)))
        i, count = len(self.draws) - 1, len(self.draws[-1])
        if any(low < end and high > begin for begin, end in self.seen):
            raise ProbeError(
                f"step {i} draws from its Brownian path where an earlier step has drawn, so that "
                "its noise is not independent of that step's"
            )
        if count == DRAWS:
            raise ProbeError(f"step {i} draws noise more than {DRAWS} times")
        self.seen.append((low, high))
        self.draws[-1].append(Draw(None, own=False, path=True))
        return self.noise_at(i, count)


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
    draws: list[list[Draw]] = []

    def draw(arguments: dict[str, Any]) -> Tensor:
        i, count = len(draws) - 1, len(draws[-1])
        if count == DRAWS:
            raise ProbeError(f"step {i} draws noise more than {DRAWS} times")
        # The vectors are float64 and nothing else is: another dtype is one the scheduler names.
        dtype = arguments.get("dtype") or torch.get_default_dtype()
        named = None if dtype == torch.float64 else dtype
        if arguments.get("generator") not in (None, generator):
            raise ProbeError(f"step {i} draws noise from a generator of its own")
        draws[-1].append(Draw(named, arguments.get("generator") is generator))
        return noise_at(i, count)

    if getattr(scheduler, "noise_sampler", False) is None:
        scheduler.noise_sampler = _Path(draws, noise_at)
    scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    inputs, outputs, estimates = [], [], []
    result: tuple = (None, None)
    stood = generator.get_state()
    with nullcontext() if quick else _Float64(draw):
        for i, t in enumerate(timesteps):
            draws.append([])
            x = sample_at(i, result[0])
            fed = scale(x, t)
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
            inputs.append(fed.flatten())
            outputs.append(result[0].flatten())
            if isinstance(result[1], Tensor) and result[1].numel() == x.numel():
                estimates.append(result[1].flatten())
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
        draws=draws,
    )


def _call(scheduler: Any, i: int, **kwargs: Any) -> tuple:
    try:
        result = scheduler.step(**kwargs)
    except ProbeError:
        raise
    except Exception as error:
        raise StepFails(i, error) from error
    if not isinstance(result, tuple):
        result = (result.prev_sample, getattr(result, "pred_original_sample", None))
    return result if len(result) > 1 else (result[0], None)
