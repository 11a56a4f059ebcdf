"""A diffusers scheduler read as the numbers of a `SolverTable`.

No scheduler's mathematics is written down here: the numbers are read from its own step() (probe)
and checked on random data, so a new scheduler needs no code.
"""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from . import copies, drive, factorise
from .levels import read_levels
from .probe import Probe, probe

_NO_TABLE = {
    "variance_type": "scales the noise by a network output; construct it with a fixed variance",
    "solver_p": "steps with a scheduler of its own; construct it with solver_p=None",
    "scale_factors": "resizes the latents; construct it with scale_factors=None",
}


class UnsupportedSchedulerError(ValueError):
    """The scheduler, as configured, is no table; the message names the setting and the way out."""


def read_scheduler(
    scheduler: Any,
    num_inference_steps: int | None,
    step_kwargs: Mapping[str, Any] | None,
    strength: float | None,
    begin_index: int,
    set_timesteps_kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of a `SolverTable`; arguments and errors are those of its `from_scheduler`."""
    step_kwargs = dict(step_kwargs or {})
    _refuse(scheduler)
    _check_arguments(scheduler, num_inference_steps, step_kwargs, set_timesteps_kwargs)
    # Schedulers create tensors of their own, which must meet the probe's on one device.
    with _on_cpu(), torch.no_grad():
        twin = copies.prepare(scheduler, num_inference_steps, set_timesteps_kwargs)
        stages = int(getattr(twin, "order", 1))
        begin = _begin(twin, num_inference_steps, strength, begin_index, stages)
        # A text-to-image pipeline sets no begin index, and a scheduler may mind.
        run = twin if strength is None and not begin else copies.begin_at(twin, begin)
        return _read(scheduler, twin, copy.deepcopy(run), begin, step_kwargs)


def read_prepared(scheduler: Any, begin: int, step_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `SolverTable` of a scheduler whose timesteps are set, from row `begin` on."""
    _refuse(scheduler)
    drive.check_step_kwargs(scheduler, step_kwargs)
    with _on_cpu(), torch.no_grad():
        twin = copies.on_cpu(scheduler)
        if getattr(twin, "_step_index", None) is not None:
            # scale_model_input() of the first step has set it, and step() sets it to the same.
            twin._step_index = None
        _begin(twin, None, None, begin, int(getattr(twin, "order", 1)))
        return _read(scheduler, twin, copy.deepcopy(twin), begin, step_kwargs)


def _read(
    scheduler: Any, twin: Any, run: Any, begin: int, step_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the rows from `begin` on.

    twin: timesteps set, never stepped; it stays as it is. run: the same, to be used up.
    """
    timesteps = twin.timesteps[begin:].clone()
    try:
        probed, solver = _solve(run, timesteps, step_kwargs)
        start = copies.start_weights(copies.begin_at(twin, begin), timesteps)
        scale = solver.z.norm(dim=1)
        levels = read_levels(twin, timesteps, begin, solver.p, solver.q, solver.A, scale, solver.C)
    except drive.ProbeError as error:
        reason = _clamp(scheduler) if isinstance(error, factorise.NotLinear) else ""
        name = type(scheduler).__name__
        raise UnsupportedSchedulerError(f"{name}: {reason or error}") from error
    return {
        **{"p": solver.p, "q": solver.q, "A": solver.A, "S": scale, "C": solver.C},
        "input_scale": probed.input_scale,
        "timesteps": timesteps,
        "init_noise_sigma": float(getattr(twin, "init_noise_sigma", 1.0)),
        "start": start,
        "stages": int(getattr(twin, "order", 1)),
        "name": type(scheduler).__name__,
        "begin": begin,
        "levels": levels,
        "estimate": _in_noise(probed.estimate, solver.z, scale),
        "draws": tuple(
            tuple(zip(weights, drawn, strict=False))
            for weights, drawn in zip(solver.z.tolist(), probed.draws, strict=True)
        ),
    }


def _solve(
    run: Any, timesteps: Tensor, step_kwargs: Mapping[str, Any]
) -> tuple[Probe, factorise.Solver]:
    """What the steps do, by the quick way where that tells the whole truth."""
    if drive.may_be_quick(type(run)):
        with suppress(drive.ProbeError):
            quick = copy.deepcopy(run)
            probed = probe(quick, timesteps, step_kwargs, quick=True)
            return probed, factorise.solve(probed)
    probed = probe(run, timesteps, step_kwargs)
    return probed, factorise.solve(probed)


def _on_cpu() -> AbstractContextManager:
    """Where tensors are made on the CPU; it slows every call, and mostly they are already."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def _in_noise(estimate: Tensor | None, z: Tensor, scale: Tensor) -> Tensor | None:
    """[T, 3]: an estimate's weights of x_i, m_i and the z_i that the step itself adds, or None.

    estimate: [T, 2 + draws], by draw. z: [T, draws]. scale: [T], the norm of z.
    """
    if estimate is None:
        return None
    direction = z / torch.where(scale == 0, 1.0, scale)[:, None]
    along = (estimate[:, 2:] * direction).sum(1, keepdim=True)
    if (estimate[:, 2:] - along * direction).abs().amax() > 1e-9 * estimate.abs().amax():
        return None
    return torch.cat((estimate[:, :2], along), dim=1)


def _refuse(scheduler: Any) -> None:
    """Raise for what cannot be a table whatever its steps give."""
    missing = [f"{m}()" for m in ("set_timesteps", "step") if not hasattr(scheduler, m)]
    name = type(scheduler).__name__
    if "set_timesteps()" in missing or isinstance(scheduler, type):
        lacks = f" without {' and '.join(missing)}" if missing else ""
        raise TypeError(f"scheduler must be a diffusers scheduler object, got {scheduler!r}{lacks}")
    if missing:
        raise UnsupportedSchedulerError(f"{name}: it has no step(), so no step can be read off")
    for key, reason in _NO_TABLE.items():
        value = (getattr(scheduler, "config", None) or {}).get(key)
        if value is not None and (key != "variance_type" or str(value).startswith("learned")):
            raise UnsupportedSchedulerError(f"{name}: {key}={value!r} {reason}")


def _clamp(scheduler: Any) -> str:
    """Name the clamp that makes a step nonlinear; empty if none is configured."""
    config = getattr(scheduler, "config", None) or {}
    for key in ("thresholding", "clip_sample", "clip_denoised"):
        if config.get(key):
            return f"{key}=True clamps x0, which is not linear; construct it with {key}=False"
    return ""


def _check_arguments(
    scheduler: Any, num_inference_steps: Any, step_kwargs: dict, set_timesteps_kwargs: dict
) -> None:
    drive.check_step_kwargs(scheduler, step_kwargs)
    if num_inference_steps is None:
        if not {"timesteps", "sigmas"} & set_timesteps_kwargs.keys():
            raise ValueError("num_inference_steps must be given unless timesteps or sigmas are")
    elif isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
        raise ValueError(f"num_inference_steps must be an int, got {num_inference_steps!r}")
    elif num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")


def _begin(twin: Any, steps: int | None, strength: float | None, index: int, stages: int) -> int:
    """Return the first row to run, counted as image-to-image pipelines count."""
    count = len(twin.timesteps)
    if strength is None:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise ValueError(f"begin_index must be an int in [0, {count - 1}], got {index!r}")
        if index % stages:
            raise ValueError(f"begin_index must be a multiple of the {stages} stages, got {index}")
        return index
    if index:
        raise ValueError(f"strength and begin_index exclude each other, got {strength} and {index}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    steps = count if steps is None else steps
    begin = (steps - int(steps * strength)) * stages
    if begin >= count:
        raise ValueError(f"strength must leave a step to run, got {strength} of {steps} steps")
    return begin
