"""The slots' samples of one solver table: rows, decisions and what is taken out at the end."""

import torch
from torch import Tensor

from ...rules.config import AdaptiveConfig
from ...rules.tables import FillTables
from ...sampling.inputs import first_latents, threshold_of
from ...sampling.start import Inputs, Start
from ...sampling.state import State
from ...solvers.table import SolverTable

# Guidance scales whose noise is remembered.
_SCALES = 1000


class Lane:
    """A state with a row for every slot, of which some hold a sample and the others are at rest.

    Samples that begin at the same row of the schedule share one, guided ones and plain ones apart.

    tables: `fill_tables(table, config)`. shape: of a sample. dtype: of the network's input.
    """

    def __init__(
        self,
        table: SolverTable,
        tables: FillTables,
        config: AdaptiveConfig,
        guided: bool,
        slots: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.table, self.config, self.guided, self.slots = table, config, guided, slots
        self.dtype, self.device, self.steps = dtype, device, table.num_steps
        nothing = torch.zeros(slots, *shape, device=device)
        scale = torch.ones(slots, device=device) if guided else None
        start = Start.of(
            *(table, nothing, config),
            guidance_scale=scale,
            seed=torch.zeros(slots, dtype=torch.int64, device=device),
            dtype=dtype,
            tables=tables.to(device),
        )
        self.state = State.of(start)
        self._threshold = start.inputs.threshold[:1]
        self._noises: dict[float | None, Tensor] = {}
        self.clear()

    def clear(self) -> None:
        """Puts every slot at rest, whatever is in it."""
        # An autocast around the next run may be another one.
        self._noises.clear()
        self.taken: list[int] = []
        self.state.progress.zero_()
        self.state.index.fill_(self.steps)

    def start(
        self,
        noise: Tensor,
        latents: Tensor | None,
        seed: int,
        guidance_scale: float | None,
        threshold: float | Tensor | None,
    ) -> Start:
        """A sample before its first step: what `sampling.inputs.begin` makes of the same.

        Without what it works out anew at every call from the config and the table, which for one
        sample is most of its time.

        noise, latents: [1, ...], checked. guidance_scale: None in a lane of plain samples.

        Raises: TypeError, ValueError naming the argument.
        """
        x = first_latents(self.table, noise, latents)
        value = self._threshold if threshold is None else threshold_of(threshold, 1).reshape(1)
        scale = torch.tensor([guidance_scale or 0.0], dtype=torch.float32, device=self.device)
        inputs = Inputs(
            guidance_scale=scale,
            threshold=value,
            output_noise=self._noise(guidance_scale),
            seed=torch.tensor([seed], dtype=torch.int64, device=self.device),
            noise=None,
        )
        return Start(self.state.tables, x.reshape(1, -1), inputs, self.guided, self.dtype)

    def _noise(self, guidance_scale: float | None) -> Tensor:
        """[1] float32: what counts as noise of an output guided so."""
        if guidance_scale not in self._noises:
            if len(self._noises) >= _SCALES:
                self._noises.clear()
            # On its own device: an autocast there makes it larger.
            nothing, scale = torch.zeros(1, 1, device=self.device), None
            if guidance_scale is not None:
                scale = torch.tensor([guidance_scale], device=self.device)
            start = Start.of(
                *(self.table, nothing, self.config),
                **{"guidance_scale": scale, "dtype": self.dtype, "tables": self.state.tables},
            )
            self._noises[guidance_scale] = start.inputs.output_noise
        return self._noises[guidance_scale]

    def admit(self, slot: int, start: Start) -> None:
        """A sample takes an empty slot."""
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
