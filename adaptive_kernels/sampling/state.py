"""The state of a sampling: tables, inputs and buffers, and the ops on them."""

import numbers
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import fields
from ..ops.dispatch import warn_if_slow
from ..rules.config import AdaptiveConfig
from ..rules.criteria import Rule
from ..rules.tables import FillTables
from ..solvers.table import SolverTable
from .buffers import Buffers, allocate, copy_of, expect_fit, inputs_like, without_graph
from .start import Inputs, Start


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

    def __init__(self, tables: FillTables, inputs: Inputs, buffers: Buffers):
        vars(self).update(tables=tables, inputs=inputs, buffers=buffers)
        self._gather()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "buffers":
            value = without_graph(value)
        super().__setattr__(name, value)
        if name in ("tables", "inputs", "buffers"):
            self._gather()

    def __setstate__(self, held: dict[str, Any]) -> None:
        if "buffers" not in held:
            raise TypeError("this State was pickled by an earlier version: begin its sampling anew")
        vars(self).update(held)
        self._gather()

    def _gather(self) -> None:
        """The ops' arguments, put together whenever a part is another one: parts are frozen."""
        tensors = [getattr(getattr(self, field.part), field.name) for field in fields.FIELDS]
        arguments = ops.Arguments(*tensors, *self.tables.rule)
        if not self.tables.adds_noise and self.inputs.noise is None:
            arguments = arguments._replace(seed=None)
        vars(self)["_arguments"] = arguments
        held = [value for value in vars(self.buffers).values() if value is not None]
        vars(self)["_floating"] = [value for value in held if value.is_floating_point()]

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
        """A state for sampling from `latents`, every sample waiting for the network at step 0.

        Args:
            table: the solver. latents: [B, ...] floating, x_0, already at the solver's scale.
            config: criterion, threshold and limits.
            guidance_scale: [B] float32, or None for a network without guidance.
            seed: [B] int64 noise streams; None is 0 .. B - 1.
            noise: [T, B, ...] float32 step noise in place of the seeds.
            dtype: of model_input and model_output: float32, float16 or bfloat16.
            tables: `fill_tables(table, config)` made before; None makes them.

        Raises: TypeError, ValueError naming the argument.
        """
        if isinstance(guidance_scale, float):
            raise TypeError("guidance_scale must be a tensor, got float")
        given = {"guidance_scale": guidance_scale, "seed": seed, "noise": noise}
        return cls.of(Start.of(table, latents, config, **given, dtype=dtype, tables=tables))

    @classmethod
    def of(cls, start: Start, shared: bool = False) -> "State":
        """A state in buffers of its own, before the first step of a start.

        Args:
            shared: whether the inputs are the start's own tensors and no copies: for a state that
                will take in no other start.
        """
        state = cls(start.tables, start.inputs if shared else inputs_like(start), allocate(start))
        expect_fit(start, start.batch, state.tables, state.inputs, state.buffers)
        if not shared:
            state._take_inputs(None, start)
        state._stand_at_first(None, start)
        warn_if_slow(start.latents.device.type)
        return state

    def reset(self, start: Start) -> None:
        """Takes another start in, whatever stood in the buffers; nothing is allocated.

        Raises: TypeError, ValueError naming what does not fit; then the state is as it was.
        """
        expect_fit(start, self.latents.shape[1], self.tables, self.inputs, self.buffers)
        self.take(start)

    def take(self, start: Start) -> None:
        """`reset` by a start of the same `Start.signature`, which fits."""
        self._take_inputs(None, start)
        self._stand_at_first(None, start)

    def admit(self, slot: int, start: Start) -> None:
        """Puts one sample into a slot, waiting at step 0; the other samples stay as they are.

        It goes on as it would in a sampling of its own: nothing that stood in the slot is read.

        Args:
            slot: 0 .. B - 1. start: of one sample, and else as this state's own was.

        Raises: IndexError, TypeError, ValueError naming what does not fit; then the state is as it
            was.
        """
        batch = self.latents.shape[1]
        if isinstance(slot, bool) or not isinstance(slot, numbers.Integral):
            raise TypeError(f"slot must be an int, got {slot!r}")
        if not 0 <= slot < batch:
            raise IndexError(f"slot must be 0 to {batch - 1}, got {slot}")
        if self.rule.batch_wide and batch > 1:
            raise ValueError(
                "a sample can be put into a slot with granularity 'sample' alone: with 'batch' all "
                "samples decide together, at one step"
            )
        expect_fit(start, 1, self.tables, self.inputs, self.buffers)
        self._take_inputs(slot, start)
        self._stand_at_first(slot, start)

    def _take_inputs(self, slot: int | None, start: Start) -> None:
        for name, value in vars(start.inputs).items():
            if value is not None:
                # Of noise the samples are the second dimension.
                _part(getattr(self.inputs, name), int(name == "noise"), slot).copy_(value)

    def _stand_at_first(self, slot: int | None, start: Start) -> None:
        """A slot, or all of them, waits for the network at step 0, from the latents of a start."""
        b, tables, (batch, elements) = self.buffers, self.tables, self.buffers.latents.shape[1:]
        halves = b.model_input.shape[0] // batch if batch else 1
        _part(b.latents[0], 0, slot).copy_(start.latents)
        _part(b.progress, 1, slot).zero_()
        _part(b.measures, 0, slot).zero_()
        _part(b.refreshed, 1, slot).zero_()
        _part(b.score, 1, slot).fill_(torch.nan)
        first = start.latents * tables.input_scale
        _part(b.model_input.view(halves, batch, elements), 1, slot).copy_(first)
        _part(b.timestep.view(halves, batch), 1, slot).copy_(tables.timestep)

    def arguments(self, model_output: Tensor | None = None) -> ops.Arguments:
        """The arguments of `ops.advance` by name; `ops.step` takes `fresh` after them.

        Args:
            model_output: read in place of the buffer.

        Buffers carry no autograd graph from here on, whoever wrote into them.
        """
        own = self._arguments
        if not torch.compiler.is_compiling():
            for buffer in self._floating:
                if buffer.requires_grad:
                    # A network that was called with gradients wrote here: its graph would grow by a
                    # call per tick, and hold every activation.
                    buffer.detach_()
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
        return type(self)(self.tables, copy_of(self.inputs), copy_of(self.buffers))

    def bytes(self) -> int:
        """Bytes of all tensors, the tables' included."""
        return sum(tensor.nbytes for _, tensor in fields.tensors(self.arguments()))

    @property
    def rule(self) -> Rule:
        return self.tables.rule

    def final(self) -> Tensor:
        """[B, N] float32: a copy of the latents after the last step, where all samples are."""
        latents, steps = self.buffers.latents, self.tables.rows.shape[0]
        return latents[steps % latents.shape[0]].clone()

    def current(self) -> Tensor:
        """[B, N] float32: a copy of every sample's latents at its own step."""
        slot = self.index.long() % self.latents.shape[0]
        return self.latents[slot, torch.arange(slot.shape[0], device=slot.device)]


def _part(tensor: Tensor, dimension: int, slot: int | None) -> Tensor:
    """What a tensor holds of one slot, or of all."""
    return tensor if slot is None else tensor.narrow(dimension, slot, 1)


def _tensor(part: str, name: str) -> property:
    def get(self: State) -> Tensor | None:
        value = getattr(getattr(self, part), name)
        if part != "buffers" or value is None:
            return value
        # What a compiled function writes there shall leave no graph, and it cannot detach a tensor
        # that it was given.
        if torch.compiler.is_compiling():
            return value.detach()
        return value.detach_() if value.requires_grad else value

    def put(self: State, value: Tensor | None) -> None:
        value = None if value is None else value.detach()
        setattr(self, part, replace(getattr(self, part), **{name: value}))

    return property(get, put, doc=fields.FIELD[name].text)


def _counter(row: int) -> property:
    return property(lambda self: self.buffers.progress[row])


for _field in fields.FIELDS:
    setattr(State, _field.name, _tensor(_field.part, _field.name))
for _row, _name in enumerate(fields.PROGRESS):
    setattr(State, _name, _counter(_row))
