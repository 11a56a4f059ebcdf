"""The noise of a stochastic solver, drawn as its scheduler draws it, from the same generator."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .table import SolverTable

Generators = torch.Generator | Sequence[torch.Generator] | None


class Noise:
    """Draws row by row what the scheduler's own step() would draw, used or not.

    Args:
        table: the solver, which knows every draw. shape: of the latents, as the scheduler is given
            them.
    """

    def __init__(self, table: SolverTable, shape: torch.Size):
        self.shape = shape
        self.scale = table.S.tolist()
        self.rows = table.draws

    def into(
        self, noise: Tensor, row: int, generator: Generators, device: torch.device, dtype: Any
    ) -> None:
        """Writes z of a row, [B, N] float32: the draws in the scheduler's own weights over S.

        Args:
            generator: of step(), one or one for each sample. device, dtype: of the model output.
        """
        from diffusers.utils.torch_utils import randn_tensor

        for number, (weight, draw) in enumerate(self.rows[row]):
            z = randn_tensor(
                self.shape,
                generator=generator if draw.own else None,
                device=device,
                dtype=draw.dtype or dtype,
            ).reshape(noise.shape)
            share = weight / self.scale[row] if self.scale[row] else 0.0
            if number == 0:
                torch.mul(z.float(), share, out=noise)
            else:
                noise.add_(z.float(), alpha=share)


def drawn(
    table: SolverTable,
    shape: torch.Size,
    generator: Generators,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor | None:
    """[T, B, ...] float32: the noise of all rows, as the scheduler's steps would draw it in turn.

    None of a solver that adds none; it draws all the same where its scheduler does.

    Raises: ValueError for a table whose draws are not known, or come from a Brownian path.
    """
    if table.adds_noise and not any(table.draws):
        raise ValueError(
            f"generator needs a table that was read off a scheduler, got {table}: give its noise "
            "by step_noise="
        )
    if any(draw.path for row in table.draws for _, draw in row):
        raise ValueError(
            f"generator must be None for {table.name}, whose noise comes from a Brownian path that "
            "no generator makes: seed= names streams, step_noise= gives the noise itself"
        )
    noise = torch.zeros((table.num_steps, *shape), dtype=torch.float32, device=device)
    source = Noise(table, shape)
    for row in range(len(table.draws)):
        source.into(noise[row], row, generator, device, dtype)
    return noise if table.adds_noise else None
