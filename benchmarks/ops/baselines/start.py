"""Where a baseline begins, and what it leaves."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Start:
    """What one call reads, of B samples of N elements that all stand at one step; never mutated.

    The solver is DDIM of a network that predicts noise: p = u = 0, q = w = 1 or -1, no history.
    """

    criterion: str  # "third_order", "released" or "defect"
    shape: tuple[int, ...]  # [B, ...]
    dtype: torch.dtype  # of the network's input
    guidance_scale: float | None  # None: no guidance
    threshold: float
    max_skip: int
    step: int  # solver steps done
    steps: int  # that a call makes at most
    fresh: bool  # whether the first of them takes the model output
    model_output: Tensor  # [B or 2B, N] network dtype
    latents: list[Tensor]  # [B, N] each, float32: x_i, x_{i-1}, x_{i-2}
    measures: Tensor  # [B, 6] float64: the state's
    rows: Tensor  # [steps, 10 + K] float32
    kept: list[Tensor]  # [B, N] each, float32: E_0, E_1; none but under `defect`
    weights: Tensor | None = None  # [steps, 8] float32: f, r, spread, noise of each step
    costs: Tensor | None = None  # [Q] float32: predicted error per unit of defect by skipped steps

    @property
    def skips(self) -> int:
        """Skipped steps of the run, once the first step of a call is done."""
        return 0 if self.fresh else 1


class Result(NamedTuple):
    """What a call left."""

    latents: Tensor  # [B, N] of the step now reached
    model_input: Tensor  # [B or 2B, N]
    steps: Tensor | int  # [B] or one number: solver steps done
    refresh: Tensor | bool  # [B] or one: whether the next step calls the network
    score: Tensor | float  # [B] or one number: left over right side of the first decision
    batch_wide: bool  # whether the samples decided together
    kept: Tensor | None = None  # [B, N]: the output a refresh under `defect` keeps
