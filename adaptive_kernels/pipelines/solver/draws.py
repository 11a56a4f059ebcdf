"""The noise of a stochastic solver, drawn as its scheduler draws it, from the same generator."""

from typing import Any

import torch
from torch import Tensor

from ...solvers.table import SolverTable


class Noise:
    """Draws row by row what the scheduler's own step() would draw, used or not.

    Args:
        table: the solver, which knows every draw. shape: of the latents as the pipeline holds them.
    """

    def __init__(self, table: SolverTable, shape: torch.Size):
        self.shape = shape
        self.scale = table.S.tolist()
        self.rows = table.draws

    def into(self, noise: Tensor, row: int, generator: Any, model_output: Tensor) -> None:
        """Writes z of a row, [B, N] float32: the draws in the scheduler's own weights over S."""
        from diffusers.utils.torch_utils import randn_tensor

        for number, (weight, draw) in enumerate(self.rows[row]):
            z = randn_tensor(
                self.shape,
                generator=generator if draw.own else None,
                device=model_output.device,
                dtype=draw.dtype or model_output.dtype,
            ).reshape(noise.shape)
            share = weight / self.scale[row] if self.scale[row] else 0.0
            if number == 0:
                torch.mul(z.float(), share, out=noise)
            else:
                noise.add_(z.float(), alpha=share)
