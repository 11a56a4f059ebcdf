"""Who gets which slot, and in which order results go out: the engine without its tensors."""

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .errors import EngineError, RequestError
from .request import Entry, Queue
from .sample import Sample

# How long an engine sleeps that has nothing to do and whose queue says that more will come.
IDLE_SECONDS = 0.001


class Work(Protocol):
    """What is done in the slots."""

    def admit(self, slot: int, entry: Entry) -> None:
        """Puts a request into a slot; raises where it cannot, and then leaves the slot empty."""

    def tick(self) -> list[tuple[int, Sample]]:
        """One network call of all samples under way; (slot, sample) of those that it finished."""


class Outbox:
    """Finished samples until they go out, in the order in which they came or that of the queue."""

    def __init__(self, ordered: bool):
        self._ordered, self._next = ordered, 0
        self._held: dict[int, Sample] = {}

    def put(self, sample: Sample) -> None:
        self._held[sample.number] = sample

    def ready(self) -> Iterator[Sample]:
        """Those whose turn it is; each is let go of as it goes out."""
        if not self._ordered:
            yield from self.rest()
        while self._next in self._held:
            self._next += 1
            yield self._held.pop(self._next - 1)

    def rest(self) -> Iterator[Sample]:
        """All that are held, whatever is missing before them."""
        for number in sorted(self._held) if self._ordered else list(self._held):
            yield self._held.pop(number)


def serve(
    queue: Queue,
    work: Work,
    slots: int,
    *,
    ordered: bool,
    on_error: str,
    failed: Callable[[Entry, Exception], Sample],
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Sample | None]:
    """Every request through a slot; nothing happens but while a next sample is asked for.

    A tick comes only when every slot is taken or the queue has no request to give. None comes out
    once a tick while the queue says that it has none yet: who holds samples back may let them go.

    Args:
        failed: makes the sample of a request that could not be taken in.
        stopped: asked before every tick; then all ends as it is.
    """
    outbox, free = Outbox(ordered), list(range(slots))
    under_way: dict[int, Entry] = {}
    failure: Exception | None = None
    while not stopped():
        yield from outbox.ready()
        gap = False
        while free and failure is None:
            try:
                entry = queue.take()
            except Exception as error:
                failure = error
                break
            if entry is None:
                gap = not queue.over
                break
            try:
                work.admit(free[0], entry)
            except Exception as error:
                sample = failed(entry, error)
                if on_error == "raise":
                    failure = RequestError(entry.id, str(error))
                    failure.__cause__ = error
                else:
                    outbox.put(sample)
                    yield from outbox.ready()
            else:
                under_way[heapq.heappop(free)] = entry
        if not under_way and (failure is not None or queue.over):
            break
        if gap:
            yield None
        if not under_way:
            time.sleep(IDLE_SECONDS)
            continue
        try:
            finished = work.tick()
        except Exception as error:
            yield from outbox.rest()
            unfinished: list[Any] = [entry.id for entry in under_way.values()]
            raise EngineError(unfinished, f"{type(error).__name__}: {error}") from error
        for slot, sample in finished:
            del under_way[slot]
            heapq.heappush(free, slot)
            outbox.put(sample)
    yield from outbox.rest()
    if failure is not None:
        raise failure
