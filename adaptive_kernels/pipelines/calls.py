"""The networks' calls of one loop, step by step: made, or served from the last refresh."""

from collections.abc import Callable
from typing import Any

from . import outputs
from .clock import Stopwatch
from .outputs import Kept
from .record import Record
from .standin import StandIn


class Calls:
    """Raw outputs by network and number of the call within a step; a missing one is made.

    Args:
        names: {id of a module: its name in the pipeline}. record: takes the counts.
        may_skip: () -> bool, asked once per step, at its first call.
    """

    def __init__(self, names: dict[int, str], record: Record, may_skip: Callable[[], bool]):
        self.names, self._record, self._may_skip = names, record, may_skip
        self._watches = {name: Stopwatch() for name in names.values()}
        self.forget()

    def forget(self) -> None:
        """Back to the state before a sampling's first call."""
        self._kept: dict[tuple[int, int], Kept] = {}
        self._counts: dict[int, int] = {}
        self._skip: bool | None = None
        self._served = self._made = self._refreshes = 0
        self.latents: tuple | None = None  # shape of what a network was called with

    def answer(self, standin: StandIn, args: tuple, kwargs: dict) -> Any:
        """What a call of the loop's gets: the last raw output at a skipped step, else a new one."""
        module = id(standin.owner)
        count = self._counts.get(module, 0)
        self._counts[module] = count + 1
        kept = self._kept.get((module, count))
        if self._skip is None:
            self._skip = self._may_skip()
        if self._skip:
            if kept is not None and kept.serves(args, kwargs, self._refreshes):
                self._served += 1
                self._record.skipped[self.names[module]] += 1
                return kept.output()
            # What is asked has changed: where nothing was served yet, the step is a refresh.
            self._skip = self._served > 0
        name, latents = self.names[module], outputs.sample(args, kwargs)
        began = self._watches[name].begin(latents)
        output = standin.original(*args, **kwargs)
        self._watches[name].end(began, latents)
        self._made += 1
        self._record.made[name] += 1
        if kept is None:
            kept = self._kept[module, count] = Kept()
        kept.keep(output, args, kwargs, self._refreshes + 1)
        if self.latents is None and latents is not None:
            self.latents = tuple(latents.shape)
        return output

    def end_step(self) -> bool:
        """Ends a step. Returns whether it was a refresh.

        Fresh is what the networks have just made: all of it, or nobody was asked at all. Where some
        was made and some served, the next step makes up for it.
        """
        served, made = self._served, self._made
        self._served = self._made = 0
        self._counts.clear()
        self._skip = False if served and made else None
        self._refreshes += not served
        return not served

    def refresh_next(self) -> None:
        """Asks the networks at the next step, whatever the rule says."""
        self._skip = False

    def seconds(self) -> dict[str, float]:
        """{network: time in its calls}; the device must have done them all."""
        return {name: watch.seconds() for name, watch in self._watches.items()}
