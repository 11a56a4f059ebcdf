"""The networks' raw outputs of the last refresh, by module and number of the call within a step."""

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor


class Kept:
    """One raw output, and what the call was given.

    Arguments that stayed the same object from one call to the next (embeddings) are expected to
    stay; another one in their place asks for a refresh. Those that a pipeline makes anew at every
    step say nothing. A pipeline that writes into an output gets copies from then on.
    """

    def __init__(self) -> None:
        self.refresh = -1  # number of the refresh it belongs to
        self._output: Any = None
        self._versions: list[tuple[Tensor, int]] = []
        self._written = False
        self._form: tuple | None = None
        self._seen: dict[tuple, weakref.ref] | None = None
        self._same: dict[tuple, weakref.ref] | None = None

    def keep(self, output: Any, args: tuple, kwargs: dict, refresh: int) -> None:
        """Takes note of a call that the network answered."""
        now = {key: weakref.ref(value) for key, value in _tensors(args, kwargs)}
        before, watched = self._seen, self._same
        if before is not None:
            if watched is None:
                watched = [key for key in now if key in before and before[key]() is now[key]()]
            self._same = {key: now[key] for key in watched if key in now}
        self._seen, self.refresh, self._form = now, refresh, _form(args, kwargs)
        self._output = _copy(output) if self._written else output
        self._versions = [(t, t._version) for t in _leaves(self._output) if not t.is_inference()]

    def serves(self, args: tuple, kwargs: dict, refresh: int) -> bool:
        """Whether the call is one like that of the last refresh, and the output as it was."""
        if self.refresh != refresh or _form(args, kwargs) != self._form:
            return False
        for tensor, version in self._versions:
            if tensor._version != version:
                self._written = True
                return False
        for (where, inner), ref in (self._same or {}).items():
            if isinstance(where, int):
                value = args[where] if where < len(args) else None
            else:
                value = kwargs.get(where)
                if inner is not None:
                    value = value.get(inner) if isinstance(value, dict) else None
            if value is not ref():
                return False
        return True

    def output(self) -> Any:
        """What the network gave."""
        return _copy(self._output) if self._written else self._output


def sample(args: tuple, kwargs: dict) -> Tensor | None:
    """The latents a network is called with."""
    value = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    return value if isinstance(value, Tensor) else None


def _form(args: tuple, kwargs: dict) -> tuple:
    """What kind of call it is: the latents' shape, and whether it wants a tuple."""
    latents = sample(args, kwargs)
    return None if latents is None else latents.shape, kwargs.get("return_dict")


def _tensors(args: tuple, kwargs: dict) -> Iterator[tuple[tuple, Tensor]]:
    """((where, inner key), tensor) of a call's arguments, and of those in dictionaries among them.

    Latents and timestep are others at every step, and never looked at again.
    """
    for place, value in enumerate(args[1:], start=1):
        if isinstance(value, Tensor):
            yield (place, None), value
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            yield (name, None), value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(inner, Tensor):
                    yield (name, key), inner


def _leaves(output: Any) -> list[Tensor]:
    """The tensors of an output: one, a tuple or list of them, or an output class."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return [leaf for part in output for leaf in _leaves(part)]
    return []


def _copy(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, dict):
        return type(output)(**{name: _copy(part) for name, part in output.items()})
    if isinstance(output, (tuple, list)):
        return type(output)(_copy(part) for part in output)
    return output
