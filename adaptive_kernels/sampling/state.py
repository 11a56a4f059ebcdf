"""The buffers of a sampling: allocated once, written by the ops, read when the caller asks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..ops.dispatch import warn_if_slow
from ..rules.config import AdaptiveConfig
from ..rules.fills import FillTables, fill_tables
from ..solvers.table import SolverTable


@dataclass
class State:
    """The buffers of `ops.step` and `ops.advance` for B samples, in the ops' argument order."""

    latents: Tensor  # [R, B, N] float32
    history: Tensor  # [K - 1, B, N] float32
    model_input: Tensor  # [B or 2B, N] network dtype
    timestep: Tensor  # [B or 2B] dtype of the scheduler's timesteps
    progress: Tensor  # [5, B] int32: index, run, nfe, last refresh, the one before
    norms: Tensor  # [B, 2] float64
    refreshed: Tensor  # [T, B] bool
    score: Tensor  # [T, B] float32
    outputs: Tensor | None  # [3, B, N] float32
    workspace: Tensor | None  # ops.workspace_shape float64
    model_output: Tensor  # [B or 2B, N] network dtype
    guidance_scale: Tensor  # [B] float32
    threshold: Tensor  # [B] float32
    rows: Tensor  # [T, 10 + K] float32
    weights: Tensor | None  # [T, G, G, 7] float32
    run_cost: Tensor | None  # [T, G, Q] float32
    seed: Tensor  # [B] int64
    noise: Tensor | None  # [T, B, N] float32
    rule: tuple[int, int, int, int]
    batch_wide: bool

    def __repr__(self) -> str:
        (_, batch, elements), rows = self.latents.shape, self.model_input
        return (
            f"State({batch} samples of {elements} elements on {self.latents.device}, "
            f"{len(self.rows)} steps, network of {len(rows)} rows in "
            f"{str(rows.dtype).removeprefix('torch.')})"
        )

    @classmethod
    def begin(
        cls,
        table: SolverTable,
        latents: Tensor,
        config: AdaptiveConfig,
        *,
        guidance_scale: Tensor | None = None,
        seed: Tensor | None = None,
        noise: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        tables: FillTables | None = None,
    ) -> "State":
        """Buffers for sampling from `latents`, every sample waiting for the network at step 0.

        Args:
            table: the solver. latents: [B, ...] floating, x_0, already at the solver's scale.
            config: criterion, threshold and limits.
            guidance_scale: [B] float32, or None for a network without guidance.
            seed: [B] int64 noise streams; None is 0 .. B - 1.
            noise: [T, B, ...] float32 step noise in place of the seeds.
            dtype: of model_input and model_output: float32, float16 or bfloat16.
            tables: `fill_tables(table, config)` made before; None makes them.
        """
        tables = fill_tables(table, config) if tables is None else tables
        device, batch = latents.device, latents.shape[0]
        warn_if_slow(device.type)
        x = latents.reshape(batch, latents.shape[1:].numel()).float()
        elements, steps = x.shape[1], table.num_steps
        model_input = (x * float(table.input_scale[0])).to(dtype)
        # A network takes int64 or float32: other timesteps of a scheduler are rounded to float32.
        timestep = table.timesteps[:1].to(device)
        timestep = timestep if timestep.dtype == torch.int64 else timestep.float()
        count = batch if guidance_scale is None else 2 * batch

        def buffer(*shape, dtype=torch.float32, fill=0):
            return torch.full(shape, fill, dtype=dtype, device=device)

        state = cls(
            latents=buffer(3 * table.stages + 1, batch, elements),
            history=buffer(table.history - 1, batch, elements),
            model_input=model_input.repeat(count // batch if batch else 1, 1),
            timestep=timestep.repeat(count),
            progress=buffer(5, batch, dtype=torch.int32),
            norms=buffer(batch, 2, dtype=torch.float64),
            refreshed=buffer(steps, batch, dtype=torch.bool),
            score=buffer(steps, batch, fill=torch.nan),
            outputs=None if tables.weights is None else buffer(3, batch, elements),
            workspace=None
            if torch.device(device).type == "cpu"
            else buffer(*ops.workspace_shape(batch, elements), dtype=torch.float64),
            model_output=buffer(count, elements, dtype=dtype),
            guidance_scale=buffer(batch) if guidance_scale is None else guidance_scale,
            threshold=buffer(batch, fill=config.resolved().threshold),
            rows=tables.rows.to(device),
            weights=None if tables.weights is None else tables.weights.to(device),
            run_cost=None if tables.run_cost is None else tables.run_cost.to(device),
            seed=torch.arange(batch, device=device) if seed is None else seed,
            noise=None if noise is None else noise.reshape(steps, batch, elements).contiguous(),
            rule=tuple(config.rule(table.stages)),
            batch_wide=config.granularity == "batch",
        )
        state.latents[0] = x
        return state

    def arguments(self, model_output: Tensor | None = None) -> tuple:
        """The arguments of `ops.advance`, in order; `ops.step` takes `fresh` after them.

        Args:
            model_output: read in place of the buffer.
        """
        return (
            self.latents,
            self.history,
            self.model_input,
            self.timestep,
            self.progress,
            self.norms,
            self.refreshed,
            self.score,
            self.outputs,
            self.workspace,
            self.model_output if model_output is None else model_output,
            self.guidance_scale,
            self.threshold,
            self.rows,
            self.weights,
            self.run_cost,
            self.seed,
            self.noise,
            *self.rule,
            self.batch_wide,
        )

    def step(
        self,
        fresh: bool,
        model_output: Tensor | None = None,
        condition: int | None = None,
    ) -> None:
        """One solver update of every sample that does not wait (`ops.step`)."""
        ops.step(*self.arguments(model_output), fresh, condition)

    def advance(
        self,
        model_output: Tensor | None = None,
        samples: Tensor | None = None,
        condition: int | None = None,
    ) -> None:
        """Takes fresh model outputs and runs every sample to its next refresh (`ops.advance`).

        Args:
            model_output: [B or 2B, N] of all samples, or [b or 2b, N] of `samples`
                alone; None: the network wrote into the buffer.
            samples: [b] int64, or None for all.
            condition: handle of a CUDA graph's condition to set, or None.
        """
        if samples is not None:
            batch, full = self.latents.shape[1], model_output.new_zeros(self.model_output.shape)
            indices = samples if len(full) == batch else torch.cat([samples, samples + batch])
            full[indices] = model_output
            model_output = full
        # Between two refreshes the output is used by this call alone: no copy is needed.
        ops.advance(*self.arguments(model_output), condition)

    def signature(self) -> tuple:
        """What a captured `advance` of these buffers fixes: shapes, dtypes, the rule."""
        return tuple(
            (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value
            for value in vars(self).values()
        )

    def clone(self) -> "State":
        """A copy in buffers of its own."""
        return type(self)(
            **{
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in vars(self).items()
            }
        )

    def load(self, other: "State") -> None:
        """Takes the values of a state of the same signature into these buffers."""
        for buffer, value in zip(vars(self).values(), vars(other).values(), strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(value)

    def bytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    @property
    def index(self) -> Tensor:
        return self.progress[0]

    @property
    def nfe(self) -> Tensor:
        return self.progress[2]

    def current(self) -> Tensor:
        """[B, N] float32: a copy of every sample's latents at its own step."""
        slot = self.index.long() % self.latents.shape[0]
        return self.latents[slot, torch.arange(slot.shape[0], device=slot.device)]
