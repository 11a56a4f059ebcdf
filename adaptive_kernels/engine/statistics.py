"""What a run of the engine came to: counts, times and who stood in which slot when."""

import time
from collections import deque
from typing import Any, NamedTuple

import torch

from ..pipelines.clock import Stopwatch
from .request import Entry

# Single requests and ticks that are remembered; a queue may be endless.
REMEMBERED = 10_000
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Span(NamedTuple):
    """A sample's stay in a slot."""

    number: int  # of the request in the queue
    slot: int
    first_tick: int
    last_tick: int  # its last, included
    nfe: int


class Record:
    """Takes note of one run as it goes on."""

    def __init__(self, slots: int):
        self.slots = slots
        self.began = time.perf_counter()
        self.ended: float | None = None
        self.ticks = self.taken = self.network_rows = self.wasted_rows = 0
        self.done = self.failed = self.nonfinite = self.calls = 0
        self.network_seconds = self.tick_seconds = 0.0
        self.spans: deque[Span] = deque(maxlen=REMEMBERED)
        self.occupancy: deque[int] = deque(maxlen=REMEMBERED)
        self.watch = Stopwatch()
        self._queue_seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._admitted: dict[int, tuple[int, float]] = {}  # by slot

    def admitted(self, slot: int, entry: Entry) -> None:
        self._admitted[slot] = self.ticks, time.perf_counter()

    def began_tick(self) -> None:
        self.watch = Stopwatch()
        self._tick_began = time.perf_counter()

    def ended_tick(self, taken: int, rows: int, wasted: int) -> None:
        """taken: slots with a sample. rows: those of the network; wasted: of them, for nobody."""
        self.ticks += 1
        self.taken += taken
        self.network_rows += rows
        self.wasted_rows += wasted
        self.occupancy.append(taken)
        # The device is done with the network: the counters behind it have been read.
        self.network_seconds += self.watch.seconds()
        self.tick_seconds += time.perf_counter() - self._tick_began

    def finished(self, slot: int, entry: Entry, nfe: int) -> dict[str, Any]:
        """Counts a sample; its times, as fields of a `Sample`."""
        first, admitted = self._admitted.pop(slot)
        last, now = self.ticks - 1, time.perf_counter()
        self.done += 1
        self.calls += nfe
        self.spans.append(Span(entry.number, slot, first, last, nfe))
        waited, took = max(admitted - entry.arrived, 0.0), now - admitted
        self._queue_seconds.append(waited)
        self._seconds.append(took)
        times = {"queue_seconds": waited, "seconds": took}
        return {"first_tick": first, "last_tick": last, **times}

    def close(self) -> None:
        if self.ended is None:
            self.ended = time.perf_counter()

    def under_way(self) -> list[tuple[int, int]]:
        """(slot, first tick) of the samples that are not finished."""
        return [(slot, first) for slot, (first, _) in self._admitted.items()]

    def report(self) -> dict[str, Any]:
        """The run in numbers, as `Engine.report` says."""
        seconds = (time.perf_counter() if self.ended is None else self.ended) - self.began
        ticks = max(self.ticks, 1)
        return {
            "slots": self.slots,
            "samples": self.done,
            "failed": self.failed,
            "nonfinite": self.nonfinite,
            "ticks": self.ticks,
            "seconds": seconds,
            "samples_per_second": self.done / seconds if self.done else 0.0,
            "mean_nfe": self.calls / self.done if self.done else None,
            "occupancy": self.taken / (ticks * self.slots),
            "slots_in_use": list(self.occupancy),
            "idle_rows": self.ticks * self.slots - self.taken,
            "network_rows": self.network_rows,
            "wasted_rows": self.wasted_rows,
            "network_seconds": self.network_seconds,
            "tick_seconds": self.tick_seconds,
            "request_seconds": _spread(self._seconds),
            "queue_seconds": _spread(self._queue_seconds),
        }


def _spread(values: deque[float]) -> dict[str, float] | None:
    """Mean and percentiles; None where there is nothing yet."""
    if not values:
        return None
    found = torch.tensor(list(values), dtype=torch.float64)
    quantiles = {name: float(found.quantile(share)) for name, share in _QUANTILES.items()}
    return {"mean": float(found.mean()), **quantiles}
