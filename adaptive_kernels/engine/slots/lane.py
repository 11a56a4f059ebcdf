"""The slots' samples of one solver table: rows, decisions and what is taken out at the end."""

import torch
from torch import Tensor

from ...rules.config import AdaptiveConfig
from ...rules.fills import fill_tables
from ...sampling.start import Start
from ...sampling.state import State
from ...solvers.table import SolverTable


class Lane:
    """A state with a row for every slot, of which some hold a sample and the others are at rest.

    Samples that begin at the same row of the schedule share one, guided ones and plain ones apart.

    shape: of a sample. dtype: of the network's input.
    """

    def __init__(
        self,
        table: SolverTable,
        config: AdaptiveConfig,
        guided: bool,
        slots: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.table, self.guided, self.slots, self.shape = table, guided, slots, shape
        nothing = torch.zeros(slots, *shape, device=device)
        scale = torch.ones(slots, device=device) if guided else None
        start = Start.of(
            *(table, nothing, config),
            guidance_scale=scale,
            seed=torch.zeros(slots, dtype=torch.int64, device=device),
            dtype=dtype,
            tables=fill_tables(table, config).to(device),
        )
        self.state = State.of(start)
        self.clear()

    @property
    def steps(self) -> int:
        return len(self.state.rows)

    def clear(self) -> None:
        """Puts every slot at rest, whatever is in it."""
        self.taken: list[int] = []
        self.state.progress.zero_()
        self.state.index.fill_(self.steps)

    def admit(self, slot: int, start: Start) -> None:
        self.state.admit(slot, start)
        self.taken = sorted([*self.taken, slot])

    def release(self, slot: int) -> None:
        """A sample that is at its end leaves; its row rests as it is."""
        self.taken.remove(slot)

    def latents(self, slot: int) -> Tensor:
        """[N] float32: those of a sample at its end, in memory of their own."""
        state = self.state
        return state.latents[self.steps % len(state.latents), slot].clone()

    def trace(self, slot: int) -> tuple[Tensor, Tensor]:
        """([T] bool, [T] float32): who called the network when, and what decided it."""
        return self.state.refreshed[:, slot].clone(), self.state.score[:, slot].clone()

    def rows(self, slot: int) -> list[int]:
        """Where a slot's rows are in the state's `model_input`, unconditional first."""
        return [slot, self.slots + slot] if self.guided else [slot]
