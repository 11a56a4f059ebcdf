"""What ends a run of the engine."""

from collections.abc import Sequence
from typing import Any


class RequestError(ValueError):
    """A request that could not be taken in; the cause says why.

    id: the request's, or its place in the queue.
    """

    def __init__(self, id: Any, why: str):
        super().__init__(f"request {id!r}: {why}")
        self.id, self.why = id, why

    def __reduce__(self) -> tuple:
        return RequestError, (self.id, self.why)


class EngineError(RuntimeError):
    """A network, or what stands around it, that failed with samples under way.

    unfinished: ids of the requests that were under way and have no result; those that were not
    taken from the queue yet are not among them.
    """

    def __init__(self, unfinished: Sequence[Any], why: str):
        names = ", ".join(map(repr, unfinished))
        super().__init__(f"{why}; the requests that were under way are unfinished: {names}")
        self.unfinished, self.why = list(unfinished), why

    def __reduce__(self) -> tuple:
        return EngineError, (self.unfinished, self.why)
