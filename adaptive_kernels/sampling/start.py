"""What a sampling begins with: the latents of step 0 and what each sample is given."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rules.config import LARGEST_FLOAT, AdaptiveConfig
from ..rules.fills import fill_tables
from ..rules.precision import computing_dtype, largest_noise
from ..rules.tables import FillTables
from ..solvers.table import SolverTable


@dataclass(frozen=True)
class Inputs:
    """What the ops read of a sampling besides its tables."""

    guidance_scale: Tensor  # [B] float32
    threshold: Tensor  # [B] float32
    output_noise: Tensor  # [B] float32
    seed: Tensor  # [B] int64
    noise: Tensor | None  # [T, B, N] float32


@dataclass(frozen=True, eq=False)
class Start:
    """B samples before their first step; a `State` is made of one, or takes it in.

    Tensors stay the caller's until then: what is written into them meanwhile counts.

    tables: of the latents' device. latents: [B, N] float32, x_0. guided: whether the network has an
    unconditional half. dtype: of the network's input and output.
    """

    tables: FillTables
    latents: Tensor
    inputs: Inputs
    guided: bool
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        table: SolverTable,
        latents: Tensor,
        config: AdaptiveConfig,
        *,
        guidance_scale: Tensor | float | None = None,
        seed: Tensor | None = None,
        noise: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        tables: FillTables | None = None,
    ) -> "Start":
        """A start from `latents`; the arguments of `State.begin`.

        guidance_scale: a number too, of float32.
        """
        for name, value, kind in (
            ("table", table, SolverTable),
            ("latents", latents, Tensor),
            ("config", config, AdaptiveConfig),
        ):
            if not isinstance(value, kind):
                raise TypeError(
                    f"{name} must be of type {kind.__name__}, got {type(value).__name__}"
                )
        scale = None if isinstance(guidance_scale, float) else guidance_scale
        for name, value in (("guidance_scale", scale), ("seed", seed), ("noise", noise)):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        tables = tables or fill_tables(table, config)
        own = tables.are_for(table, config)
        if not own and tables.rule != config.rule(table):
            raise ValueError(
                f"tables must be fill_tables(table, config) of this config, {config}, got those of "
                f"another, with {tables.rule}"
            )
        device, batch = latents.device, latents.shape[0]
        # A sampling is no part of anybody's graph.
        x = latents.detach().reshape(batch, latents.shape[1:].numel()).float()
        threshold = tables.threshold if own else config.resolved(table).threshold
        most = 0.0
        if "defect" in config.kind.sums:
            computing = computing_dtype(dtype, device)
            most = largest_noise(config.output_noise, computing, guidance_scale)
            if config.granularity == "batch" and isinstance(most, Tensor) and batch:
                # Samples that decide together measure one defect.
                most = most.square().mean().sqrt().expand(batch).contiguous()
        if noise is not None:
            noise = noise.detach().reshape(table.num_steps, *x.shape).contiguous()

        def rows(value: Tensor | float) -> Tensor:
            if isinstance(value, Tensor):
                return value.detach()
            value = value if value <= LARGEST_FLOAT else math.inf
            return torch.full((batch,), value, dtype=torch.float32, device=device)

        inputs = Inputs(
            rows(0.0 if guidance_scale is None else guidance_scale),
            rows(threshold),
            rows(most),
            torch.arange(batch, dtype=torch.int64, device=device) if seed is None else seed,
            noise,
        )
        return cls(tables.to(device), x, inputs, guidance_scale is not None, dtype)

    @property
    def batch(self) -> int:
        return len(self.latents)

    @property
    def rows(self) -> int:
        """M, rows of the network."""
        return 2 * self.batch if self.guided else self.batch

    def signature(self) -> tuple[Any, ...]:
        """What a `State` fixes: a start of the same signature can be taken in by it."""
        noisy = self.inputs.noise is not None
        return self.latents.shape, self.latents.device, self.guided, noisy, self.dtype, self.tables
