"""The state of a sampling: tables, inputs and buffers, and the ops on them."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import fields
from ..ops.dispatch import warn_if_slow
from ..rules.config import AdaptiveConfig
from ..rules.criteria import Rule
from ..rules.fills import FillTables
from ..solvers.table import SolverTable
from .start import Inputs, Start

# What the ops work in: those of `ops.fields` that are neither tables nor inputs.
Buffers = dataclasses.make_dataclass(
    "Buffers", [(field.name, Tensor | None) for field in fields.FIELDS if field.part == "buffers"]
)


@dataclass(repr=False, eq=False)
class State:
    """The state of B samples, whose tensors are attributes too: ``state.latents``.

    Args:
        tables: the solver under its config, shared between samplings.
        inputs: what each sample was given.
        buffers: what the ops work in (`ops.fields` says what each of them is).
    """

    tables: FillTables
    inputs: Inputs
    buffers: Buffers

    def __repr__(self) -> str:
        (_, batch, elements), rows = self.latents.shape, self.model_input
        return (
            f"State({batch} samples of {elements} elements on {self.latents.device}, "
            f"{len(self.rows)} steps, network of {len(rows)} rows in "
            f"{str(rows.dtype).removeprefix('torch.')})"
        )

    @classmethod
    def begin(
        cls, table: SolverTable, latents: Tensor, config: AdaptiveConfig, **options: Any
    ) -> "State":
        """A state for sampling from `latents`, every sample waiting for the network at step 0.

        Args:
            table: the solver. latents: [B, ...] floating, x_0, already at the solver's scale.
            config: criterion, threshold and limits.
            guidance_scale: [B] float32, or None for a network without guidance.
            seed: [B] int64 noise streams; None is 0 .. B - 1.
            noise: [T, B, ...] float32 step noise in place of the seeds.
            dtype: of model_input and model_output: float32, float16 or bfloat16.
            tables: `fill_tables(table, config)` made before; None makes them.
        """
        return cls.of(Start.of(table, latents, config, **options))

    @classmethod
    def of(cls, start: Start) -> "State":
        """A state in buffers of its own that has taken a start in."""
        state = cls(start.tables, _like(start.inputs), _buffers(start))
        state.reset(start)
        warn_if_slow(start.latents.device.type)
        return state

    def reset(self, start: Start) -> None:
        """Takes another start in, whatever stood in the buffers; nothing is allocated.

        Raises: ValueError naming what does not fit this state; then it is as it was.
        """
        self._expect(start, self.latents.shape[1])
        self._admit(slice(None), start)

    def admit(self, slot: int, start: Start) -> None:
        """Puts one sample into a slot, waiting at step 0; the other samples stay as they are.

        It goes on as it would in a sampling of its own: nothing that stood in the slot is read.

        Args:
            slot: 0 .. B - 1. start: of one sample, and else of the signature of this state's own.

        Raises: IndexError, ValueError naming what does not fit; then the state is as it was.
        """
        batch = self.latents.shape[1]
        if not 0 <= slot < batch:
            raise IndexError(f"slot must be 0 to {batch - 1}, got {slot}")
        self._expect(start, 1)
        self._admit(slice(slot, slot + 1), start)

    def _expect(self, start: Start, samples: int) -> None:
        """Raises unless a start of so many samples can be taken in."""
        _, batch, elements = self.latents.shape
        for name, own, came in (
            ("shape of latents", (samples, elements), tuple(start.latents.shape)),
            ("device", self.latents.device, start.latents.device),
            ("rows of the network", len(self.model_input), batch * (2 if start.guided else 1)),
            ("dtype", self.model_input.dtype, start.dtype),
        ):
            if own != came:
                raise ValueError(f"start must have the state's {name} ({own}), got {came}")
        sizes = {"T": len(self.rows), "B": samples, "N": elements}
        for name, value in vars(start.inputs).items():
            shape = tuple(sizes[size] for size in fields.FIELD[name].shape)
            wanted = None if getattr(self.inputs, name) is None else shape
            got = None if value is None else tuple(value.shape)
            if wanted != got:
                raise ValueError(f"start.inputs.{name} must have shape {wanted}, got {got}")
        if start.tables is not self.tables:
            raise ValueError("start must have the state's own tables (State.tables), got others")

    def _admit(self, samples: slice, start: Start) -> None:
        own = vars(self.inputs)
        for name, value in vars(start.inputs).items():
            if value is not None:
                # Of noise the samples are the second dimension.
                target = own[name][:, samples] if name == "noise" else own[name][samples]
                target.copy_(value)
        b, tables, (batch, elements) = self.buffers, self.tables, self.latents.shape[1:]
        b.latents[0, samples] = start.latents
        b.progress[:, samples] = 0
        b.measures[samples] = 0
        b.refreshed[:, samples] = False
        b.score[:, samples] = torch.nan
        halves = len(b.model_input) // batch if batch else 1
        first = (start.latents * tables.input_scale).to(b.model_input.dtype)
        b.model_input.view(halves, batch, elements)[:, samples] = first
        b.timestep.view(halves, batch)[:, samples] = tables.timestep

    def arguments(self, model_output: Tensor | None = None) -> ops.Arguments:
        """The arguments of `ops.advance` by name; `ops.step` takes `fresh` after them.

        Args:
            model_output: read in place of the buffer.
        """
        tensors = [getattr(getattr(self, field.part), field.name) for field in fields.FIELDS]
        own = ops.Arguments(*tensors, *self.rule)
        return own if model_output is None else own._replace(model_output=model_output)

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

    def clone(self) -> "State":
        """A copy in inputs and buffers of its own; tables are shared."""
        return type(self)(self.tables, _copy(self.inputs), _copy(self.buffers))

    def bytes(self) -> int:
        """Bytes of all tensors, the tables' included."""
        return sum(tensor.nbytes for _, tensor in fields.tensors(self.arguments()))

    @property
    def rule(self) -> Rule:
        return self.tables.rule

    def current(self) -> Tensor:
        """[B, N] float32: a copy of every sample's latents at its own step."""
        slot = self.index.long() % self.latents.shape[0]
        return self.latents[slot, torch.arange(slot.shape[0], device=slot.device)]


def _tensor(part: str, name: str) -> property:
    def get(self: State) -> Tensor | None:
        return getattr(getattr(self, part), name)

    def replace(self: State, value: Tensor | None) -> None:
        setattr(getattr(self, part), name, value)

    return property(get, None if part == "tables" else replace, doc=fields.FIELD[name].text)


def _counter(row: int) -> property:
    return property(lambda self: self.buffers.progress[row])


for _field in fields.FIELDS:
    setattr(State, _field.name, _tensor(_field.part, _field.name))
for _row, _name in enumerate(fields.PROGRESS):
    setattr(State, _name, _counter(_row))


def _like(values: Inputs) -> Inputs:
    """Inputs of the same shapes, contiguous, with nothing in them yet."""

    def like(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)

    return Inputs(**{name: like(value) for name, value in vars(values).items()})


def _copy(values: Any) -> Any:
    tensors = vars(values).items()
    return type(values)(**{name: None if v is None else v.clone() for name, v in tensors})


def _buffers(start: Start) -> Buffers:
    """Buffers for a start, with zeros in them."""
    tables, (batch, elements) = start.tables, start.latents.shape
    workspace = ops.workspace_shape(batch, elements)
    sizes = {
        "R": 3 * tables.rule.stages + 1,
        "K - 1": tables.rows.shape[1] - fields.SCALARS - 1,
        **{"T": len(tables.rows), "B": batch, "N": elements, "M": start.rows, "P": workspace[1]},
    }
    dtypes = {
        **{"model_input": start.dtype, "model_output": start.dtype},
        "timestep": tables.timestep.dtype,
    }
    without = {"workspace"} if start.latents.device.type == "cpu" else set()
    if tables.weights is None:
        without.add("outputs")
    held = {}
    for field in fields.FIELDS:
        if field.part == "buffers":
            shape = [sizes.get(size, size) for size in field.shape]
            dtype = dtypes.get(field.name, field.dtypes[0])
            held[field.name] = None
            if field.name not in without:
                held[field.name] = torch.zeros(shape, dtype=dtype, device=start.latents.device)
    return Buffers(**held)
