"""A diffusers scheduler read as the numbers of a `SolverTable`.

No scheduler's mathematics is written down here: the numbers are read from its own step() (probe)
and checked on random data, so a new scheduler needs no code.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from .levels import Rows, read_levels
from .reading import copies, drive, factorise, precision, quick
from .reading.config import number_of
from .reading.errors import Cancels, NotLinear, ProbeError, StepFails, TooOld
from .reading.probe import Probe, elsewhere, probe
from .refusals import (
    UnsupportedSchedulerError,
    clamp,
    fresh_noise,
    learned_variance,
    long_history,
    other_spacing,
    refuse,
)
from .start import added_noise, check_strength, first_row, has_own_strength

# The longest history an op takes: kMaxHistory of csrc/op/fields.h.
MAX_HISTORY = 8
# A table whose terms are this much larger than the scheduler's loses two digits of float32.
_DOUBTFUL = 100


def read_scheduler(
    scheduler: Any,
    num_inference_steps: int | None,
    step_kwargs: Mapping[str, Any] | None,
    strength: float | None,
    strength_rounding: str | None,
    begin_index: int,
    set_timesteps_kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of a `SolverTable`; arguments and errors are those of its `from_scheduler`."""
    step_kwargs = dict(step_kwargs or {})
    refuse(scheduler)
    _check_arguments(scheduler, num_inference_steps, step_kwargs, set_timesteps_kwargs)
    check_strength(strength, strength_rounding, begin_index)
    shortened = strength is not None and strength < 1
    if strength is not None and strength_rounding is None and has_own_strength(scheduler):
        set_timesteps_kwargs = {"strength": strength, **set_timesteps_kwargs}
        strength = None
    # Schedulers create tensors of their own, which must meet the probe's on one device.
    with _on_cpu(), torch.no_grad(), _refusing(scheduler):
        twin = copies.prepare(scheduler, num_inference_steps, set_timesteps_kwargs)
        begin = first_row(
            *(len(copies.timesteps_of(twin)), _stages(twin)),
            *(num_inference_steps, strength, strength_rounding, begin_index),
        )
        # A text-to-image pipeline sets no begin index, and a scheduler may mind.
        run = twin if strength is None and not begin else copies.begin_at(twin, begin)
        fields = _read(twin, run, begin, step_kwargs, num_inference_steps)
    return {**fields, "needs_latents": fields["needs_latents"] or shortened}


def read_prepared(scheduler: Any, begin: int, step_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `SolverTable` of a scheduler whose timesteps are set, from row `begin` on."""
    refuse(scheduler)
    drive.check_step_kwargs(scheduler, step_kwargs)
    with _on_cpu(), torch.no_grad(), _refusing(scheduler):
        twin = copies.on_cpu(scheduler)
        if getattr(twin, "_step_index", None) is not None:
            # scale_model_input() of the first step has set it, and step() sets it to the same.
            twin._step_index = None
        count = len(copies.timesteps_of(twin))
        first_row(count, _stages(twin), None, None, None, begin)
        steps = getattr(twin, "num_inference_steps", None)
        return _read(twin, twin, begin, step_kwargs, steps)


def _read(
    twin: Any, run: Any, begin: int, step_kwargs: Mapping[str, Any], steps: int | None
) -> dict[str, Any]:
    """Read the rows from `begin` on.

    twin: timesteps set, never stepped. run: the same, told where to begin. Both stay as they are.
    steps: of the whole schedule, as asked for; None: as many as it has.
    """
    timesteps = copies.timesteps_of(twin)[begin:].clone()
    left = None if steps is None else steps - begin
    timesteps, probed, solver = _solve(run, timesteps, step_kwargs, left)
    scale = solver.z.norm(dim=1)
    rows = Rows(solver.p, solver.q, solver.A, scale, solver.C)
    levels = read_levels(twin, timesteps, begin, _stages(twin), rows)
    rising = levels is not None and levels.rising
    if levels is None:
        start = added_noise(copies.begin_at(twin, begin), timesteps)
    elif rising and not begin:
        # Inversion: the latents of an image as they are.
        start = 1.0, 0.0
    else:
        start = float(levels.alpha[0]), float(levels.sigma[0])
    if solver.C.shape[1] > MAX_HISTORY:
        raise ProbeError(long_history(twin, solver.C.shape[1], MAX_HISTORY))
    return {
        **{"p": solver.p, "q": solver.q, "A": solver.A, "S": scale, "C": solver.C},
        "input_scale": probed.input_scale,
        "timesteps": timesteps,
        "init_noise_sigma": number_of(twin, "init_noise_sigma"),
        "start": start,
        "stages": _stages(twin),
        "name": type(twin).__name__,
        "begin": begin,
        "needs_latents": bool(begin) or rising,
        "levels": levels,
        "estimate": _in_noise(probed.estimate, solver.z, scale),
        "draws": tuple(
            tuple(zip(weights, drawn, strict=False))
            for weights, drawn in zip(solver.z.tolist(), probed.draws, strict=True)
        ),
    }


@contextmanager
def _refusing(scheduler: Any) -> Iterator[None]:
    """Say of which scheduler it is, and in the user's words why, that it cannot be read."""
    try:
        yield
    except ProbeError as error:
        name = type(scheduler).__name__
        raise UnsupportedSchedulerError(f"{name}: {_reason(scheduler, error)}") from error


def _stages(scheduler: Any) -> int:
    order = number_of(scheduler, "order")
    if order < 1 or order != int(order):
        raise ProbeError(f"its order must be a whole number from 1 on, got {order:g}")
    return int(order)


def _reason(scheduler: Any, error: ProbeError) -> str:
    """Why it is no table: by the setting that makes it none, where one does."""
    if isinstance(error, TooOld):
        return fresh_noise(scheduler) or str(error)
    if isinstance(error, NotLinear):
        return clamp(scheduler) or str(error)
    if isinstance(error, Cancels):
        return f"{error}; {other_spacing(scheduler)}"
    missed = learned_variance(scheduler) if isinstance(error, StepFails) else ""
    return missed or str(error)


def _solve(
    run: Any, timesteps: Tensor, step_kwargs: Mapping[str, Any], left: int | None
) -> tuple[Tensor, Probe, factorise.Solver]:
    """What the steps do, and the timesteps they are for.

    Some schedules end with the level of the result, at which there is no step, one timestep more
    than the steps that are `left` (None: not known); some schedulers take a timestep for every row
    of the batch.
    """
    per_row, first = False, None
    while True:
        try:
            return timesteps, *_attempt(run, timesteps, step_kwargs, per_row)
        except StepFails as error:
            first = first or error
            if not isinstance(error.__cause__, IndexError):
                raise first from first.__cause__
            if not error.row and not per_row:
                per_row = True
            elif 0 < error.row == len(timesteps) - 1 == (left or error.row) and not timesteps[-1]:
                timesteps = timesteps[:-1]
            else:
                raise first from first.__cause__


def _attempt(
    run: Any, timesteps: Tensor, step_kwargs: Mapping[str, Any], per_row: bool
) -> tuple[Probe, factorise.Solver]:
    """By the quick way where that tells the whole truth. run: stays as it is."""
    solved, known = None, quick.is_of_diffusers(type(run))
    if quick.may_be_quick(type(run)) and not per_row:
        with suppress(ProbeError):
            probed = probe(copy.deepcopy(run), timesteps, step_kwargs, quick=True)
            solved = factorise.solve(probed)
    if solved is None:
        probed = probe(copy.deepcopy(run), timesteps, step_kwargs, per_row=per_row)
        solved = factorise.solve(probed)
    if not known:
        other = elsewhere(copy.deepcopy(run), timesteps, step_kwargs, probed, per_row)
        factorise.check_elsewhere(solved, other)
    if not known or solved.cancellation > _DOUBTFUL:
        precision.check(copy.deepcopy(run), timesteps, step_kwargs, probed, solved, per_row)
    return probed, solved


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
