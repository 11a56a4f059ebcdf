"""What comes of a request."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One finished sample and the record of its decisions, or why there is none.

    T rows of its own solver table. ``score[i]`` decided row i: left over right side of the
    criterion, NaN where none was asked.
    """

    id: Any  # the request's, or its place in the queue
    number: int  # its place in the queue, from 0
    request: Any  # as it was given
    latents: Tensor | None = None  # [*shape] float32; None where the request failed
    nfe: int = 0  # network calls; a guided pair counts as one
    refreshed: Tensor | None = None  # [T] bool
    score: Tensor | None = None  # [T] float32
    nonfinite: bool = False  # NaN or Inf in the latents
    slot: int | None = None
    first_tick: int = 0  # the tick of its first network call, from 0
    last_tick: int = 0
    queue_seconds: float = 0.0  # from its arrival until a slot took it
    seconds: float = 0.0  # from then until it was finished
    image: Any = None  # what an engine of a pipeline decodes
    error: Exception | None = None  # of a request that failed, with on_error="yield"

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Sample({self.id!r}, failed: {self.error})"
        lost = ", NaN or Inf" if self.nonfinite else ""
        return (
            f"Sample({self.id!r}, latents {list(self.latents.shape)}, "
            f"NFE {self.nfe} of {len(self.refreshed)}, {self.seconds:.3g} s{lost})"
        )
