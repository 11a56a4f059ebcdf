"""A diffusers scheduler as a table of numbers.

In a closed loop, where nobody edits the latents between two steps, every linear scheduler is

    h_i     = p_i x_i + q_i m_i
    x_{i+1} = A_i x_i + sum_{k=0..K-1} C_{i,k} h_{i-k} + S_i z_i
    network input of step i = c_i x_i at timestep t_i;  x_0 = init_noise_sigma * noise

with m the model output, z standard normal noise. That holds for two-stage solvers and for UniPC's
corrector too, although they step from an anchor, a latent older than x_i: the previous row says
what x_i was made of, so a multiple of it replaces the anchor. Heun's second stage
x_2 = x_0 + dt/2 (d_0 + d_1), for one, is x_2 = x_1 + dt/2 (d_1 - d_0) because x_1 = x_0 + dt d_0;
UniPC of order p is a multistep solver of depth p + 1. A kernel therefore reads no anchor.

No scheduler's mathematics is written down here: the numbers are read from its own step() (probe)
and checked on random data, so a new scheduler needs no code.
"""

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import factorise, probe
from .levels import NoiseLevels, read_levels

_NO_TABLE = {
    "variance_type": "scales the noise by a network output; construct it with a fixed variance",
    "solver_p": "steps with a scheduler of its own; construct it with solver_p=None",
    "scale_factors": "resizes the latents; construct it with scale_factors=None",
}


class UnsupportedSchedulerError(ValueError):
    """The scheduler, as configured, is no table; the message names the setting and the way out."""


@dataclass(frozen=True, eq=False, repr=False)
class SolverTable:
    """All numbers of a solver, one row per network call.

        h_i     = p_i x_i + q_i m_i
        x_{i+1} = A_i x_i + sum_k C_{i,k} h_{i-k} + S_i z_i

    The scale of h is free; here max(|p|, |q|) = 1. Entries with i - k < 0 are zero. The tensors
    live on the CPU and are never mutated. Raises ValueError for fields that do not fit together.
    """

    p: Tensor  # [T] float64
    q: Tensor  # [T] float64
    A: Tensor  # [T] float64
    S: Tensor  # [T] float64
    C: Tensor  # [T, K] float64
    input_scale: Tensor  # [T] float64, c_i
    timesteps: Tensor  # [T], the scheduler's values and dtype
    init_noise_sigma: float
    start: tuple[float, float]  # image-to-image: x_0 = start[0] * clean + start[1] * noise
    stages: int  # network calls per solver step: 2 for Heun and its like, else 1
    name: str
    begin: int = 0  # rows of the schedule left out before the first, for image-to-image
    levels: NoiseLevels | None = None  # None: unknown, and only fill "reuse" is possible

    def __post_init__(self) -> None:
        steps = self.p.shape[0] if self.p.ndim == 1 else 0
        if steps < 1:
            raise ValueError(f"p must have shape (T,) with T >= 1, got {tuple(self.p.shape)}")
        if self.C.ndim != 2 or self.C.shape[0] != steps or self.C.shape[1] < 1:
            raise ValueError(
                f"C must have shape ({steps}, K) with K >= 1, got {tuple(self.C.shape)}"
            )
        for field in ("p", "q", "A", "S", "C", "input_scale", "timesteps"):
            value = getattr(self, field)
            if field != "C" and value.shape != (steps,):
                raise ValueError(f"{field} must have shape ({steps},), got {tuple(value.shape)}")
            if field != "timesteps" and value.dtype != torch.float64:
                raise ValueError(f"{field} must be torch.float64, got {value.dtype}")
            if not value.isfinite().all():
                raise ValueError(f"{field} must be finite, got {value[~value.isfinite()].tolist()}")
        numbers = (self.init_noise_sigma, *self.start)
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
            raise ValueError(
                "init_noise_sigma and the two weights of start must be finite, "
                f"got {self.init_noise_sigma} and {self.start}"
            )
        if self.levels is not None and (
            len(self.levels.a) != steps or len(self.levels.alpha) != steps + 1
        ):
            raise ValueError(f"levels must be those of {steps} rows, got {self.levels}")
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, got {self.stages}")

    def __repr__(self) -> str:
        return (
            f"SolverTable({self.name}: {self.num_steps} steps, history {self.history}, "
            f"stages {self.stages})"
        )

    @property
    def num_steps(self) -> int:
        """T, the number of network calls when nothing is skipped."""
        return self.p.shape[0]

    @property
    def history(self) -> int:
        """K, how many h a step reads, its own included."""
        return self.C.shape[1]

    def rows(self) -> Tensor:
        """Return what a kernel reads at step i, as one row.

            [p, q, A, S, c_{i+1}, t_{i+1}, C_0 .. C_{K-1}]

        Returns [T, 6 + K] float32; c and t of the step after the last are 0.
        """
        ahead = torch.zeros(self.num_steps, 2, dtype=torch.float64, device="cpu")
        ahead[:-1, 0] = self.input_scale[1:]
        ahead[:-1, 1] = self.timesteps[1:].double()
        own = torch.stack((self.p, self.q, self.A, self.S), dim=1)
        return torch.cat((own, ahead, self.C), dim=1).float()

    @classmethod
    def from_scheduler(
        cls,
        scheduler: Any,
        num_inference_steps: int | None = None,
        *,
        step_kwargs: Mapping[str, Any] | None = None,
        strength: float | None = None,
        begin_index: int = 0,
        **set_timesteps_kwargs: Any,
    ) -> "SolverTable":
        """Read the table off a diffusers scheduler, which stays as it is.

        scheduler: any object with the set_timesteps() and step() of diffusers.
        num_inference_steps: steps of the whole schedule; None only with `timesteps` or `sigmas`.
        step_kwargs: further arguments of step(), such as {"eta": 1.0}.
        strength: in (0, 1], runs the last int(num_inference_steps * strength) solver steps, as
            image-to-image pipelines do; begin_index: the first row to run. One of the two at most.
        set_timesteps_kwargs: further arguments of set_timesteps(), such as mu or sigmas.

        Raises UnsupportedSchedulerError where the scheduler is no table, TypeError for an object
        that is no scheduler, ValueError for arguments out of range.
        """
        name, step_kwargs = type(scheduler).__name__, dict(step_kwargs or {})
        _refuse(scheduler)
        _check_arguments(scheduler, num_inference_steps, step_kwargs, set_timesteps_kwargs)
        # Schedulers create tensors of their own, which must meet the probe's on one device.
        with torch.device("cpu"), torch.no_grad():
            own = probe.prepare(scheduler, num_inference_steps, set_timesteps_kwargs)
            stages = int(getattr(own, "order", 1))
            begin = _begin(own, num_inference_steps, strength, begin_index, stages)
            placed = probe.begin_at(own, begin)
            # A text-to-image pipeline sets no begin index, and a scheduler may mind.
            run = copy.deepcopy(own if strength is None and not begin else placed)
            timesteps = own.timesteps[begin:].clone()
            try:
                seen = probe.probe(run, timesteps, step_kwargs)
                solver = factorise.solve(seen)
                start = probe.start_weights(placed, timesteps)
                scale = solver.z.norm(dim=1)
                known = read_levels(
                    own, timesteps, begin, solver.p, solver.q, solver.A, scale, solver.C
                )
            except probe.ProbeError as error:
                reason = _clamp(scheduler) if isinstance(error, factorise.NotLinear) else ""
                raise UnsupportedSchedulerError(f"{name}: {reason or error}") from error
        return cls(
            *(solver.p, solver.q, solver.A, scale, solver.C),
            input_scale=seen.input_scale,
            timesteps=timesteps,
            init_noise_sigma=float(getattr(own, "init_noise_sigma", 1.0)),
            start=start,
            stages=stages,
            name=name,
            begin=begin,
            levels=known,
        )


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
    probe.check_step_kwargs(scheduler, step_kwargs)
    known = inspect.signature(scheduler.set_timesteps).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for key in set_timesteps_kwargs:
        if not (key in known or anything) or key == "device":
            raise ValueError(
                f"{type(scheduler).__name__}.set_timesteps has no argument {key!r}; it takes "
                f"{sorted(set(known) - {'device', 'num_inference_steps'})}"
            )
    if num_inference_steps is None:
        if not {"timesteps", "sigmas"} & set_timesteps_kwargs.keys():
            raise ValueError("num_inference_steps must be given unless timesteps or sigmas are")
    elif isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
        raise ValueError(f"num_inference_steps must be an int, got {num_inference_steps!r}")
    elif num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")


def _begin(own: Any, steps: int | None, strength: float | None, index: int, stages: int) -> int:
    """Return the first row to run, counted as image-to-image pipelines count."""
    rows = len(own.timesteps)
    if strength is None:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < rows:
            raise ValueError(f"begin_index must be an int in [0, {rows - 1}], got {index!r}")
        if index % stages:
            raise ValueError(f"begin_index must be a multiple of the {stages} stages, got {index}")
        return index
    if index:
        raise ValueError(f"strength and begin_index exclude each other, got {strength} and {index}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    steps = rows if steps is None else steps
    begin = (steps - int(steps * strength)) * stages
    if begin >= rows:
        raise ValueError(f"strength must leave a step to run, got {strength} of {steps} steps")
    return begin
