"""The network's batch: which sample stands in which slot, and one call for all of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...rules.config import AdaptiveConfig
from ...rules.tables import FillTables
from ...sampling.inputs import expect, guidance_of
from ...sampling.network import called
from ...solvers.table import SolverTable
from ..request import Entry, Refused, Request, noise_of, seed_of
from ..sample import Sample
from ..statistics import Record
from .conditions import Conditions
from .lane import Lane
from .solvers import Solvers

# Lanes with a state of their own; those at rest make room for others.
_LANES = 8


class Batch:
    """B slots of one network, each with a sample at a step of its own, or empty.

    Args:
        shape: of a sample. guidance_scale, unconditional: where a request has none.
        gather: whether the network is called on the rows that are in use, and not on all.
    """

    def __init__(
        self,
        model: Callable,
        solvers: Solvers,
        config: AdaptiveConfig,
        slots: int,
        shape: tuple[int, ...],
        *,
        guidance_scale: float | None,
        unconditional: Mapping[str, Any] | None,
        dtype: torch.dtype,
        device: torch.device,
        gather: bool,
    ):
        self.model, self.solvers, self.config = model, solvers, config
        self.slots, self.shape, self.dtype, self.device = slots, shape, dtype, device
        self.guidance_scale, self.unconditional, self.gather = guidance_scale, unconditional, gather
        # A network of fixed size has both halves always.
        both = guidance_scale is not None and not gather
        self.conditions = Conditions(slots, device, 2 if both else 1)
        self.lanes: dict[tuple, Lane] = {}
        self.told = False  # whether it was said that next to nothing is skipped
        self.record = Record(slots)
        self._entries: dict[int, tuple[Entry, Lane]] = {}

    def clear(self, record: Record) -> None:
        """Empties every slot; the counts go into another record."""
        self.record = record
        self._entries.clear()
        self.conditions.forget()
        for lane in self.lanes.values():
            lane.clear()

    def free(self) -> None:
        """Lets go of all buffers; what was under way is lost."""
        self._entries.clear()
        self.lanes.clear()
        self.conditions.forget()

    def admit(self, slot: int, entry: Entry) -> None:
        """Puts a request into an empty slot, waiting for the network at its first step.

        Raises: TypeError, ValueError naming the argument; then everything is as it was.
        """
        request = entry.item
        if isinstance(request, Refused):
            raise request.error
        if not isinstance(request, Request):
            hint = " (prompts are for Engine.from_pipeline)" if isinstance(request, str) else ""
            raise TypeError(f"a request must be a Request, got {type(request).__name__}{hint}")
        seed = seed_of(request)
        scale = self._guidance(request)
        noise = self._latents("noise", request.noise)
        latents = self._latents("latents", request.latents)
        if request.strength is not None and latents is None:
            raise ValueError(f"latents must be given with a strength of {request.strength}")
        unconditional = request.unconditional
        if scale is None:
            unconditional = None
        elif unconditional is None:
            unconditional = self.unconditional
            if unconditional is None:
                raise ValueError(
                    f"unconditional must be given with a guidance_scale of {scale} (to the "
                    "request or to the engine; {} where the model takes nothing), got None"
                )
        trees = self.conditions.check(request.conditioning, unconditional)
        table, tables = self.solvers.of(request.strength)
        if latents is not None and request.strength is None and not table.needs_latents:
            raise ValueError("strength must be given with latents, got None")
        lane = self._lane(table, tables, scale is not None)
        start = lane.start(
            noise_of(seed, self.shape).to(self.device) if noise is None else noise,
            *(latents, seed, scale, request.threshold),
        )
        self.conditions.put(slot, trees)
        lane.admit(slot, start)
        self._entries[slot] = entry, lane
        self.record.admitted(slot, entry)

    def tick(self) -> list[tuple[int, Sample]]:
        """One call of the network for every sample under way, and all until the next one."""
        lanes = [lane for lane in self.lanes.values() if lane.taken]
        needed = sum(len(lane.taken) * (2 if lane.guided else 1) for lane in lanes)
        self.record.began_tick()
        if len(lanes) == 1 and self._is_whole(lanes[0]):
            rows = self._whole(lanes[0])
        else:
            rows = self._some(lanes)
        # The one read of the device: where everybody stands.
        counters = torch.cat([lane.state.progress for lane in lanes], dim=1).tolist()
        self.record.ended_tick(len(self._entries), rows, rows - needed)
        done: list[tuple[int, Lane, int]] = []
        for place, lane in enumerate(lanes):
            index, nfe = (counters[row][place * self.slots :] for row in (0, 2))
            done += [(slot, lane, nfe[slot]) for slot in lane.taken if index[slot] >= lane.steps]
        return list(self._taken_out(done)) if done else []

    def bytes(self) -> int:
        """Bytes around the network: states, tables and conditions."""
        return self.conditions.bytes() + sum(lane.state.bytes() for lane in self.lanes.values())

    def _guidance(self, request: Request) -> float | None:
        if request.guidance_scale is None:
            return self.guidance_scale
        return one_scale(guidance_of(request.guidance_scale))

    def _latents(self, name: str, value: Tensor | None) -> Tensor | None:
        """[1, *shape], of a tensor of a sample's shape with that 1 before it or not."""
        if value is None:
            return None
        if isinstance(value, Tensor) and value.dim() == len(self.shape) + 1 and len(value) == 1:
            value = value[0]
        expect(name, value, self.shape, self.device, "the engine's network")
        if value.is_meta:
            raise ValueError(f"{name} must have values, got a meta tensor")
        return value[None]

    def _lane(self, table: SolverTable, tables: FillTables, guided: bool) -> Lane:
        key = (table.begin, table.needs_latents, tuple(table.timesteps.tolist()), guided)
        lane = self.lanes.pop(key, None)
        if lane is None:
            at_rest = [key for key, lane in self.lanes.items() if not lane.taken]
            for old in at_rest[: max(len(self.lanes) + 1 - _LANES, 0)]:
                del self.lanes[old]
            layout = self.slots, self.shape, self.dtype, self.device
            # It outlives the mode that this run is in.
            with torch.inference_mode(False), torch.no_grad():
                lane = Lane(table, tables, self.config, guided, *layout)
        # The one that was used last stands last.
        self.lanes[key] = lane
        return lane

    def _is_whole(self, lane: Lane) -> bool:
        """Whether the network gets all rows of a lane, and no others."""
        if self.gather:
            return len(lane.taken) == self.slots
        return lane.guided == (self.conditions.halves == 2)

    def _whole(self, lane: Lane) -> int:
        """Every row of a lane that has all the samples. Returns the rows of the network."""
        state, conditions = lane.state, self.conditions
        unguided = conditions.halves == 2 and not lane.guided
        keywords = conditions.keywords(slice(self.slots if unguided else 0, None))
        state.advance(self._network(state.model_input, state.timestep, keywords))
        return len(state.model_input)

    def _some(self, lanes: list[Lane]) -> int:
        """The samples' own rows, unconditional ones first, from one lane after another."""
        conditions, offset = self.conditions, 0
        sources: dict[int, int] = {}  # row of the conditions: row of all lanes' inputs
        owners: list[tuple[Lane, list[int]]] = []
        for lane in lanes:
            own: list[list[int]] = [[], []]
            for slot in lane.taken:
                for half, row in enumerate(reversed(lane.rows(slot))):
                    place = conditions.row(slot, unconditional=half == 1)
                    sources[place] = offset + row
                    own[half].append(place)
            owners.append((lane, own[1] + own[0]))
            offset += len(lane.state.model_input)
        if not self.gather:
            # A network of fixed size: rows that nobody waits for are fed what is there.
            one = next(iter(sources.values()))
            everything = range(conditions.halves * self.slots)
            sources = {row: sources.get(row, one) for row in everything}
        rows = sorted(sources)
        position = {row: place for place, row in enumerate(rows)}
        # All that the device must know, before it has the network to do.
        parts = [[sources[row] for row in rows], rows]
        for lane, own in owners:
            parts += [lane.taken, [position[row] for row in own]]
        index, conditions_rows, *rest = self._indices(parts)
        inputs, times = lanes[0].state.model_input, lanes[0].state.timestep
        if len(lanes) > 1:
            inputs = torch.cat([lane.state.model_input for lane in lanes])
            times = torch.cat([lane.state.timestep for lane in lanes])
        keywords = conditions.keywords(conditions_rows)
        output = self._network(inputs[index], times[index], keywords)
        for (lane, own), taken, places in zip(owners, rest[::2], rest[1::2], strict=True):
            part = output[places] if len(own) < len(rows) else output
            lane.state.advance(part, taken)
        return len(rows)

    def _network(self, model_input: Tensor, timestep: Tensor, keywords: dict) -> Tensor:
        watch = self.record.watch
        began = watch.begin(model_input)
        output = called(self.model, model_input.view(-1, *self.shape), timestep, keywords)
        watch.end(began, model_input)
        return output

    def _indices(self, parts: list[list[int]]) -> tuple[Tensor, ...]:
        """Lists of rows as tensors, brought to the device in one copy that nobody waits for."""
        joined = torch.tensor([row for part in parts for row in part], dtype=torch.int64)
        if self.device.type == "cuda":
            joined = joined.pin_memory()
        return joined.to(self.device, non_blocking=True).split([len(part) for part in parts])

    def _taken_out(self, done: list[tuple[int, Lane, int]]) -> Iterator[tuple[int, Sample]]:
        latents = [lane.latents(slot) for slot, lane, _ in done]
        # A second read of the device, in ticks that finish a sample.
        nonfinite = (~torch.stack(latents).isfinite().all(dim=1)).tolist()
        for place, (slot, lane, nfe) in enumerate(done):
            entry, _ = self._entries.pop(slot)
            lane.release(slot)
            refreshed, score = lane.trace(slot)
            yield (
                slot,
                Sample(
                    *(entry.id, entry.number, entry.item),
                    latents=latents[place].view(self.shape),
                    nfe=nfe,
                    refreshed=refreshed,
                    score=score,
                    nonfinite=nonfinite[place],
                    slot=slot,
                    **self.record.finished(slot, entry, nfe),
                ),
            )


def one_scale(scale: Tensor | None) -> float | None:
    """What `guidance_of` made of a scale, as a number; None: no guidance.

    Raises: ValueError where it holds several.
    """
    if scale is not None and scale.numel() != 1:
        raise ValueError(
            f"guidance_scale must be one number (requests may have their own), got "
            f"{tuple(scale.shape)}"
        )
    return None if scale is None or float(scale) == 1.0 else float(scale)
