"""When the host must know a decision that was taken on the device, and how it reads it."""

import math

import torch
from torch import Tensor

from ...rules import criteria, defect
from ...rules.tables import FillTables
from ...sampling.state import State


class Reader:
    """Small device tensors brought to the host behind the work that makes them.

    The copy is queued at once and waited for only when somebody asks for the value.
    """

    def __init__(self, device: torch.device):
        self.device, self.reads = device, 0
        self._there: Tensor | None = None
        self._event = None
        self._device = getattr(torch, device.type) if device.type in ("cuda", "xpu") else None

    def begin(self, value: Tensor) -> None:
        self.reads += 1
        if self._device is None:
            self._there = value
            return
        there = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True)
        self._there = there.copy_(value, non_blocking=True)
        # Of the tensor's own device, whichever is the current one.
        self._event = self._device.Event()
        self._event.record(self._device.current_stream(self.device))

    def end(self) -> list:
        if self._event is not None:
            self._event.synchronize()
        there, self._there, self._event = self._there, None, None
        return there.tolist()


class Decision:
    """Whether the next row of a batch calls the network: it does when any sample asks for it.

    Follows the rows on the host. What the device decides from the latents is read once per step
    where a skip is possible (``third_order``, ``released``), once per refresh where that fixes the
    length of the run (``defect``), and not at all where the pattern is known (``never``,
    ``every(k)``, ``plan``).
    """

    def __init__(self, state: State, tables: FillTables, threshold: float):
        self.rows, self.rule = len(state.rows), state.rule
        self.criterion = criteria.NAME[self.rule.criterion]
        self.reader = Reader(state.latents.device)
        self.run = 0  # rows since the refresh, its own included
        self.last_call = self.call_before = 0  # rows of the last refresh and of the one before
        self.skips = 0  # under defect: how many whole steps may follow the last refresh
        self._answer: bool | None = True
        self._asked = state.measures if self.criterion == "defect" else state.run
        if self.criterion == "plan":
            self.mask = [value <= 0 for value in tables.rule_table[:, 0, 0, 0].tolist()]
        if self.criterion == "defect":
            # The device computes and compares the same float64 numbers.
            self.cost = tables.rule_table.double()
            self.threshold = torch.tensor(threshold, dtype=torch.float32, device="cpu").item()

    def done(self, row: int, fresh: bool) -> None:
        """Takes note of a row that was done, and asks for what the next one needs."""
        self.run = 1 if fresh else self.run + 1
        if fresh:
            self.call_before, self.last_call = self.last_call, row
        self._answer = self._known(row, fresh)
        if self._answer is None:
            self.reader.begin(self._asked)

    def fresh(self) -> bool:
        """Whether the next row must call the network; waits for the device where it must."""
        if self._answer is None:
            values = self.reader.end()
            if self.criterion == "defect":
                self.skips = self._length(values)
                self._answer = self.skips == 0
            else:
                self._answer = not all(values)
        return self._answer

    def _known(self, row: int, fresh: bool) -> bool | None:
        following, skipped = (row + 1) // self.rule.stages, (self.run - 1) // self.rule.stages
        if row + 1 >= self.rows:
            return True
        if (row + 1) % self.rule.stages:
            return fresh
        if criteria.forced(self.rule, following, skipped):
            return True
        if self.criterion == "plan":
            return not self.mask[row + 1]
        if not criteria.of(self.rule.criterion).sums:
            return False
        if self.criterion == "defect" and not fresh:
            return skipped >= self.skips
        return None

    def _length(self, values: list[list[float]]) -> int:
        """Whole steps that every sample may skip after this refresh, by ops.reference.decide."""
        gap = max(1, min(self.last_call - self.call_before, self.cost.shape[1])) - 1
        measures = torch.tensor(values, dtype=torch.float64, device="cpu")[:, None]
        pairs = torch.stack(defect.terms(measures, self.cost[self.last_call, gap]), dim=-1).tolist()
        # torch's square root is not always the nearest number, as the device's is.
        fits = [
            [
                (math.sqrt(square) if sample[defect.VARIANCE] > 0 else clean) <= self.threshold
                for clean, square in row
            ]
            for sample, row in zip(values, pairs, strict=True)
        ]
        for skipped in range(self.rule.max_skip):
            if not all(row[min(skipped, len(row) - 1)] for row in fits):
                return skipped
        return self.rule.max_skip
