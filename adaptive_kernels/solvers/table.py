"""A solver as a table of numbers.

In a closed loop, where nobody edits the latents between two steps, every linear scheduler is

    h_i     = p_i x_i + q_i m_i
    x_{i+1} = A_i x_i + sum_{k=0..K-1} C_{i,k} h_{i-k} + S_i z_i
    network input of step i = c_i x_i at timestep t_i;  x_0 = init_noise_sigma * noise

with m the model output, z standard normal noise. That holds for two-stage solvers and for UniPC's
corrector too, although they step from an anchor, a latent older than x_i: the previous row says
what x_i was made of, so a multiple of it replaces the anchor. Heun's second stage
x_2 = x_0 + dt/2 (d_0 + d_1), for one, is x_2 = x_1 + dt/2 (d_1 - d_0) because x_1 = x_0 + dt d_0;
UniPC of order p is a multistep solver of depth p + 1. A kernel therefore reads no anchor.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .error import gaussian_error
from .keywords import known_keywords
from .levels import NoiseLevels
from .reading.noise import Draw
from .scheduler import read_prepared, read_scheduler


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
    # From clean latents: x_0 = start[0] * clean + start[1] * noise; None: the level is not known.
    start: tuple[float, float] | None
    stages: int  # network calls per solver step: 2 for Heun and its like, else 1
    name: str
    begin: int = 0  # rows of the schedule left out before the first, for image-to-image
    levels: NoiseLevels | None = None  # None: unknown, and only fill "reuse" is possible
    # [T, 3] float64, weights of x_i, m_i and z_i in the second value of step()
    # (pred_original_sample); None where it returns none, or one of more than these.
    estimate: Tensor | None = None
    # Every step's calls for noise, used or not, each with its weight: S_i z_i is their sum.
    draws: tuple[tuple[tuple[float, Draw], ...], ...] = ()
    # Whether a run starts from clean latents: some part is left out before it, or it is inversion.
    needs_latents: bool = False

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
        numbers = (self.init_noise_sigma, *(self.start or (0.0, 0.0)))
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

    @functools.cached_property
    def adds_noise(self) -> bool:
        """Whether the solver is stochastic: some S_i is not zero."""
        return bool(self.S.any())

    @functools.cached_property
    def error(self) -> float | None:
        """E, how far the full run ends from the exact solution: rms on Gaussian data of widths
        from 0.01 to 1, in units of the data (module `solvers.error`).

        None where noise levels are not known, where the solver adds noise, and of a single row.
        """
        if self.levels is None or self.adds_noise:
            return None
        return gaussian_error(self.p, self.q, self.A, self.C, self.levels)

    def rows(self) -> Tensor:
        """Return what step i needs of the solver, as one row.

            [p, q, A, S, c_{i+1}, t_{i+1}, C_0 .. C_{K-1}]

        The rows of the ops hold four numbers of the fill besides (`rules.fills.fill_tables`).

        Returns [T, 6 + K] float32; c and t of the step after the last are 0.
        """
        ahead = torch.zeros(self.num_steps, 2, dtype=torch.float64, device="cpu")
        ahead[:-1, 0] = self.input_scale[1:]
        ahead[:-1, 1] = self.timesteps[1:].double()
        update = torch.stack((self.p, self.q, self.A, self.S), dim=1)
        return torch.cat((update, ahead, self.C), dim=1).float()

    @classmethod
    def from_scheduler(
        cls,
        scheduler: Any,
        num_inference_steps: int | None = None,
        *,
        step_kwargs: Mapping[str, Any] | None = None,
        strength: float | None = None,
        strength_rounding: str | None = None,
        begin_index: int = 0,
        **set_timesteps_kwargs: Any,
    ) -> "SolverTable":
        """Read the table off a diffusers scheduler, which stays as it is.

        scheduler: any object with the set_timesteps() and step() of diffusers.
        num_inference_steps: steps of the whole schedule; None only with `timesteps` or `sigmas`.
        step_kwargs: further arguments of step(), such as {"eta": 1.0}.
        strength: in (0, 1], the share of the solver steps N to run, the last ones, as
            image-to-image pipelines do. Not together with begin_index.
        strength_rounding: "down" runs int(N strength) steps, as the pipelines of Stable Diffusion,
            SDXL, Kandinsky, LTX and Wan do; "up" runs N - int(N - N strength), as those of Flux,
            Stable Diffusion 3, Qwen-Image, Z-Image, Chroma and Sana Sprint do. None hands strength
            to the scheduler's own set_timesteps() where that takes one, as the pipelines of LCM do,
            and is "down" elsewhere.
        begin_index: the first row to run.
        set_timesteps_kwargs: further arguments of set_timesteps(), such as mu or sigmas.

        Raises UnsupportedSchedulerError where the scheduler is no table, TypeError for an object
        that is no scheduler or an argument nobody knows, ValueError for arguments out of range.
        """
        known_keywords(cls.from_scheduler, scheduler, set_timesteps_kwargs)
        if isinstance(num_inference_steps, np.integer):
            num_inference_steps = int(num_inference_steps)
        fields = read_scheduler(
            *(scheduler, num_inference_steps, step_kwargs),
            *(strength, strength_rounding, begin_index, set_timesteps_kwargs),
        )
        return cls(**fields)

    @classmethod
    def from_prepared(
        cls,
        scheduler: Any,
        *,
        begin_index: int = 0,
        step_kwargs: Mapping[str, Any] | None = None,
    ) -> "SolverTable":
        """Read the table off a diffusers scheduler as it stands: its set_timesteps() was called.

        What was done to its sigmas or timesteps since is read with the rest. It stays as it is, and
        must not have been stepped yet.

        begin_index: the first row to run. step_kwargs: further arguments of step().

        Raises as `from_scheduler` does.
        """
        return cls(**read_prepared(scheduler, begin_index, dict(step_kwargs or {})))
