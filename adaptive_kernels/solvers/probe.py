"""Run a diffusers scheduler's own step() on vectors of our choosing, in float64.

A linear step() fed basis vectors writes its own coefficients into the coordinates of what it
returns. The scheduler is only duck-typed: nothing here imports diffusers.
"""

import copy
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
_DRIVEN = {"model_output", "timestep", "sample", "old_pred_original_sample", "timestep_back"}


class ProbeError(ValueError):
    """step() cannot be run on vectors of our choosing; the message says why."""


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


class _Vector(Tensor):
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


@dataclass(frozen=True)
class Run:
    """What a scheduler did with the vectors it was fed, one row per step."""

    inputs: Tensor  # [T, D] float64, what the network would be fed
    outputs: Tensor  # [T, D] float64, x_{i+1}
    estimates: Tensor | None  # [T, D] float64, the second value that step() returns, if it does
    draws: list[list[Draw]]


@dataclass(frozen=True)
class Probe:
    """What a scheduler did to basis vectors, and to random data in a closed loop beside them.

    The closed loop needs no model: a scheduler never sees it, so independent random outputs stand
    for any. Half of its elements are large enough to meet every clamp of the configuration.
    """

    x: Tensor  # [T, T] float64, weight of x_j in x_{i+1}; zero for j > i
    m: Tensor  # [T, T] float64, weight of m_j
    z: Tensor  # [T, T, DRAWS] float64, weight of the draws of step j
    input_scale: Tensor  # [T] float64
    data_x: Tensor  # [T + 1, D] float64, x_0 .. x_T of the closed loop
    data_m: Tensor  # [T, D] float64
    data_z: Tensor  # [T, DRAWS, D] float64
    # [T, 2 + DRAWS] float64, weights of x_i, m_i and the step's draws in its second value.
    estimate: Tensor | None
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


def probe(
    scheduler: Any, timesteps: Tensor, step_kwargs: Mapping[str, Any], quick: bool = False
) -> Probe:
    """Feed every step fresh basis vectors for latents, output and noise, and read them back.

    scheduler: timesteps set and never stepped; it is used up. timesteps: [T], the ones to run.
    quick: with `_Vector`; fails where a step draws.
    Raises ProbeError where step() cannot be run so or gives values that are not finite.
    """
    steps = len(timesteps)
    columns = (2 + DRAWS) * steps
    data = _random_data(scheduler, columns)

    def vector(column: int, tail: Tensor) -> Tensor:
        basis = torch.zeros(columns, dtype=torch.float64)
        basis[column] = 1
        fed = torch.cat((basis, tail))[None, None, :, None]
        return fed.as_subclass(_Vector) if quick else fed

    def sample_at(i: int, previous: Tensor | None) -> Tensor:
        return vector(i, data[0] if previous is None else previous[0, 0, columns:, 0])

    seen = run(
        scheduler,
        timesteps,
        step_kwargs,
        sample_at=sample_at,
        output_at=lambda i: vector(steps + i, data[steps + i]),
        noise_at=lambda i, draw: vector(
            2 * steps + i * DRAWS + draw, data[2 * steps + i * DRAWS + draw]
        ),
        quick=quick,
    )
    inputs, outputs = seen.inputs, seen.outputs
    data_x = torch.cat((data[:1], outputs[:, columns:]))
    input_scale = inputs[:, :steps].diagonal().clone()
    error = (inputs[:, columns:] - input_scale[:, None] * data_x[:-1]).abs()
    alone = inputs[:, :columns].count_nonzero() == input_scale.count_nonzero()
    if not alone or (error > 1e-9 * inputs[:, columns:].abs()).any():
        raise ProbeError("scale_model_input() is not a multiple of the latents")
    x, m, z = outputs[:, :columns].split((steps, steps, DRAWS * steps), dim=1)
    return Probe(
        *(x, m, z.unflatten(1, (steps, DRAWS)), input_scale, data_x),
        data_m=data[steps : 2 * steps],
        data_z=data[2 * steps :].unflatten(0, (steps, DRAWS)),
        estimate=_estimate(seen.estimates, data_x[:-1], data[steps:]),
        draws=seen.draws,
    )


def _estimate(seen: Tensor | None, data_x: Tensor, data: Tensor) -> Tensor | None:
    """[T, 2 + DRAWS]: weights of x_i, m_i and the draws of step i in the second value of step i.

    None where there is none, or more goes into it.

    seen: [T, columns + width] float64. data_x: [T, width]. data: [(1 + DRAWS) T, width], what stood
    for the outputs and for the draws.
    """
    if seen is None:
        return None
    steps, width = data_x.shape
    basis = seen[:, :-width]
    row = torch.arange(steps)
    columns = [row, steps + row, *(2 * steps + row * DRAWS + k for k in range(DRAWS))]
    weights = torch.stack([basis[row, column] for column in columns], dim=1)
    if basis.count_nonzero() != weights.count_nonzero():
        return None
    fed = torch.stack([data_x, *(data[column - steps] for column in columns[1:])], dim=1)
    terms = weights[:, :, None] * fed
    error = (terms.sum(1) - seen[:, -width:]).abs()
    return None if (error > 1e-9 * terms.abs().sum(1)).any() else weights


def _random_data(scheduler: Any, count: int, width: int = 32) -> Tensor:
    config = getattr(scheduler, "config", None) or {}
    limits = [float(config.get(key) or 1) for key in ("clip_sample_range", "sample_max_value")]
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(count, width, generator=generator, dtype=torch.float64)
    data[0] *= float(getattr(scheduler, "init_noise_sigma", 1.0))
    data[:, width // 2 :] *= 1e3 * max(limits)
    return data


def run(
    scheduler: Any,
    timesteps: Tensor,
    step_kwargs: Mapping[str, Any],
    sample_at: Callable[[int, Tensor | None], Tensor],
    output_at: Callable[[int], Tensor],
    noise_at: Callable[[int, int], Tensor],
    quick: bool = False,
) -> Run:
    """Drive scale_model_input() and step() as the pipelines do.

    sample_at(i, what step i-1 returned), output_at(i), noise_at(i, number of the draw): the
    vectors to feed, each [1, 1, D, 1] float64.
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
        dtype = arguments.get("dtype")
        named = None if dtype == torch.float64 else dtype
        if arguments.get("generator") not in (None, generator):
            raise ProbeError(f"step {i} draws noise from a generator of its own")
        draws[-1].append(Draw(named, arguments.get("generator") is generator))
        return noise_at(i, count)

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
            result = _call(scheduler, i, model_output=output_at(i), timestep=t, sample=x, **fixed)
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
        raise ProbeError(f"its own step {i} fails: {type(error).__name__}: {error}") from error
    if not isinstance(result, tuple):
        result = (result.prev_sample, getattr(result, "pred_original_sample", None))
    return result if len(result) > 1 else (result[0], None)


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
