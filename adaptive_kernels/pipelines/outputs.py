"""The networks' raw outputs of the last refresh, by module and number of the call within a step."""

import weakref
from typing import Any

from torch import Tensor


class Kept:
    """One raw output, and what the call was given.

    Arguments that stayed the same object from one call to the next (embeddings) are expected to
    stay; another one in their place asks for a refresh. Those that a pipeline makes anew at every
    step say nothing.
    """

    def __init__(self) -> None:
        self.output: Any = None
        self.shape: tuple | None = None
        self.seen: dict[Any, weakref.ref] | None = None
        self.same: dict[Any, weakref.ref] | None = None

    def keep(self, output: Any, args: tuple, kwargs: dict) -> None:
        now = {key: weakref.ref(value) for key, value in _tensors(args, kwargs)}
        if self.seen is not None:
            before = self.seen
            if self.same is None:
                self.same = {k: r for k, r in now.items() if k in before and r() is before[k]()}
            else:
                self.same = {k: now[k] for k in self.same if k in now}
        self.seen, self.output, self.shape = now, output, _shape(args, kwargs)

    def serves(self, args: tuple, kwargs: dict) -> bool:
        """Whether the call is one like the last."""
        if _shape(args, kwargs) != self.shape:
            return False
        same = self.same or {}
        return all(_at(key, args, kwargs) is old() for key, old in same.items())


def sample(args: tuple, kwargs: dict) -> Tensor | None:
    """The latents a network is called with."""
    value = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    return value if isinstance(value, Tensor) else None


def _shape(args: tuple, kwargs: dict) -> tuple | None:
    value = sample(args, kwargs)
    return None if value is None else value.shape


def _tensors(args: tuple, kwargs: dict):
    """(where, tensor) of a call's tensor arguments, and of those in dictionaries among them."""
    for place, value in enumerate(args[1:], start=1):
        if isinstance(value, Tensor):
            yield (place,), value
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            yield (name,), value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(inner, Tensor):
                    yield (name, key), inner


def _at(key: tuple, args: tuple, kwargs: dict) -> Any:
    first = key[0]
    value = kwargs.get(first) if isinstance(first, str) else args[first : first + 1]
    if isinstance(value, tuple) and not isinstance(first, str):
        return value[0] if value else None
    return value.get(key[1]) if len(key) > 1 and isinstance(value, dict) else value
