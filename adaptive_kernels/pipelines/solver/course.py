"""The course of one sampling: which step is expected next, and what the scheduler shows of it."""

from typing import Any

from torch import Tensor

from .arguments import extra_of, same
from .choose import Choice


class Course:
    """Follows a sampling along its schedule.

    Args:
        scheduler: at its first step. choice: what steps it.
    """

    def __init__(self, scheduler: Any, choice: Choice):
        self._scheduler, self._choice = scheduler, choice
        self._buffers, table = choice.solver.buffers, choice.table
        # Pipelines and scale_model_input() look at the step index: it goes on.
        self._counts = table is not None and hasattr(scheduler, "_step_index")
        # A scheduler that counts its steps does not look at the timestep.
        watched = table is not None and not self._counts
        self._timesteps = table.timesteps.tolist() if watched else None

    @property
    def finished(self) -> bool:
        return self._buffers.row >= self._buffers.rows

    def may_skip(self) -> bool:
        """Whether the next step may do without the networks; waits for the device where it must."""
        return not self.finished and not self._buffers.decision.fresh()

    def changed(self, given: dict[str, Any]) -> str | None:
        """None where a step goes on with this sampling; else what is not as in it, or ""."""
        if self.finished:
            return ""
        if given["sample"].shape != self._buffers.shape:
            return "the latents have another shape"
        if self._choice.table is None:
            # The scheduler steps itself, and goes on whatever it is given.
            return None
        extra = extra_of(given)
        if (extra or self._choice.extra) and not same(extra, self._choice.extra):
            return "step() is given other arguments"
        if self._timesteps is None:
            return None
        row, timestep = self._buffers.row, given["timestep"]
        elsewhere = isinstance(timestep, Tensor) and timestep.device.type != "cpu"
        if elsewhere and self._is_own(timestep, row):
            return None
        if float(timestep) != self._timesteps[row]:
            return "step() is given another timestep than comes next"
        if elsewhere:
            # Copies of the schedule's elements: one was read, and that is enough.
            self._timesteps = None
        return None

    def _is_own(self, timestep: Tensor, row: int) -> bool:
        """Whether it is the schedule's own element, as pipelines hand it on; nothing is read."""
        live = self._scheduler.timesteps
        at = len(live) - len(self._timesteps) + row
        return timestep.data_ptr() - live.data_ptr() == at * live.element_size()

    def show(self) -> None:
        """Sets the scheduler's step index to what its own step() would have made it."""
        if self._counts:
            self._scheduler._step_index = self._choice.begin + self._buffers.row

    def scaled(self, sample: Tensor) -> Tensor | None:
        """c_i x, where the scheduler's scale_model_input() cannot give it; else None."""
        if self._choice.scales is None or self.finished:
            return None
        return sample * self._choice.scales[self._buffers.row]
