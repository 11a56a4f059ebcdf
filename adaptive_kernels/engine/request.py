"""What a user asks the engine for, and the queue it stands in."""

import numbers
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Request:
    """One sample to make. It is checked where the engine takes it in, not where it is made.

    Args:
        id: what its result is called by; None: its place in the queue, from 0.
        seed: int64, 0 unless given, of the initial noise (``torch.Generator().manual_seed(seed)``
            on the CPU, as diffusers draws it for such a generator in float32) and of a stochastic
            solver's.
        conditioning: keyword arguments of the model, with tensors [1, ...] of the same shapes in
            every request of a run; what is no tensor must be equal in all of them.
        unconditional: the same for the unconditional half; None: the engine's.
        guidance_scale: in place of the engine's; 1.0: no guidance, one row of the network.
        threshold: in place of the config's.
        latents: clean latents of the engine's shape to start from (image to image).
        strength: in (0, 1], share of the steps to run from them, the last ones.
        noise: initial noise of the engine's shape, standard normal, in place of the seed's.
    """

    id: Any = None
    seed: int = 0
    conditioning: Mapping[str, Any] | None = None
    unconditional: Mapping[str, Any] | None = None
    guidance_scale: float | Tensor | None = None
    threshold: float | Tensor | None = None
    latents: Tensor | None = None
    strength: float | None = None
    noise: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Refused:
    """A request that could not be made, in its place in the queue."""

    id: Any
    error: Exception


@dataclass(frozen=True, eq=False)
class Entry:
    """A place in the queue. item: what stands there, a `Request` if the user did it right."""

    number: int  # from 0, in queue order
    item: Any
    arrived: float  # time.perf_counter()

    @property
    def id(self) -> Any:
        own = getattr(self.item, "id", None)
        return self.number if own is None else own


class Queue:
    """Requests one after another, each asked for only when there is a slot for it.

    Args:
        requests: an iterable; None in the place of a request means that there is none yet.
    """

    def __init__(self, requests: Iterable):
        if isinstance(requests, (Request, str, bytes, Mapping)):
            raise TypeError(
                f"requests must be an iterable of Request, got one {type(requests).__name__}"
            )
        try:
            self._iterator: Iterator = iter(requests)
        except TypeError:
            raise TypeError(
                f"requests must be an iterable of Request, got {type(requests).__name__}"
            ) from None
        self.size = len(requests) if isinstance(requests, Sized) else None
        # All that is there from the beginning has waited since.
        self._began = time.perf_counter() if self.size is not None else None
        self._number = 0
        self.over = False

    def take(self) -> Entry | None:
        """The next request; None where there is none, or none yet (`over` tells which)."""
        if self.over:
            return None
        try:
            item = next(self._iterator)
        except StopIteration:
            self.over = True
            return None
        except BaseException:
            self.over = True
            raise
        if item is None:
            return None
        now = time.perf_counter() if self._began is None else self._began
        entry = Entry(self._number, item, now)
        self._number += 1
        return entry


def seed_of(request: Request) -> int:
    """Raises: TypeError, ValueError for a seed that is no int64."""
    seed = request.seed
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit int64, got {seed}")
    return int(seed)


def noise_of(seed: int, shape: tuple[int, ...]) -> Tensor:
    """[1, *shape] float32 on the CPU: the noise of a seed, the same in every engine."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(1, *shape, generator=generator, device="cpu", dtype=torch.float32)
