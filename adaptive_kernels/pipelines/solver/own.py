"""Solver steps of a scheduler that is no table: its own, with our decision on what they give."""

from typing import Any

import torch

from ...solvers.table import SolverTable
from .buffers import Buffers


def passing(rows: int, stages: int) -> SolverTable:
    """The table whose step gives its model output: x_{i+1} = m_i."""
    zero = torch.zeros(rows, dtype=torch.float64, device="cpu")
    return SolverTable(
        *(zero, zero + 1, zero, zero, torch.ones_like(zero)[:, None], zero + 1),
        timesteps=torch.arange(rows, device="cpu"),
        init_noise_sigma=1.0,
        start=(0.0, 1.0),
        stages=stages,
        name="the scheduler's own step",
    )


class Own:
    """The scheduler steps; what it gives is looked at by the rule.

    A skipped step hands it the last output again, as the pipeline makes it of the networks' last.
    """

    def __init__(self, buffers: Buffers):
        self.buffers = buffers

    def step(self, call: Any, given: dict[str, Any], fresh: bool) -> Any:
        """What step() returns; call: () -> the scheduler's own, with the pipeline's arguments."""
        result = call()
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        if not self.buffers.untouched(given["sample"]):
            self.buffers.merge(given["sample"].detach(), torch.float32)
        self.buffers.advance(latents.detach().float(), fresh, keep=False)
        self.buffers.given(latents)
        return result
