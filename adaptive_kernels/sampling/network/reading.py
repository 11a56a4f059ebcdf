"""What was read of objects, and whether it would read the same now: by loops in C alone.

The containers that were read are kept, with what they held. As long as they hold the very same
objects, and tensors lie where they lay, reading them again would find nothing else.
"""

import collections
import functools
import operator
from collections.abc import Callable, Collection, Iterable
from itertools import chain, filterfalse
from typing import Any

import torch
from torch import Tensor

# Values of a dictionary that show what it holds at any time, and not what it held.
LIVE = (type({}.values()), type(collections.OrderedDict().values()))
_DTYPE = operator.attrgetter("dtype")

Place = tuple[int, torch.dtype]


class Reading:
    """All that was read, noted as it is read: other threads may use the objects meanwhile."""

    def __init__(self) -> None:
        self.can_tell = True  # False: it must be read again to know
        # Objects, their dictionaries, and how long these were.
        self._objects: list[Any] = []
        self._dicts: list[dict] = []
        self._dict_sizes: list[int] = []
        # Dictionaries by their keys: what gets the values that count, and the values.
        self._alike: dict[tuple, tuple[Callable, list[dict], list]] = {}
        # Other containers, how long they were, and what those that are not empty held.
        self._sized: list[Collection] = []
        self._sizes: list[int] = []
        self._read: list[Iterable] = []
        self._held: list = []
        # Containers of tensors and of None: which are None, and where the others lie.
        self._of_tensors: list[Iterable] = []
        self._absent: list[bool] = []
        self._places: list[Place] = []
        # Other tensors, held by other containers.
        self._loose: list[Tensor] = []
        self._loose_places: list[Place] = []

    def note_object(self, value: Any, held: dict, size: int) -> None:
        """The dictionary of an object, of so many entries."""
        self._objects.append(value)
        self._dicts.append(held)
        self._dict_sizes.append(size)

    def note_entries(self, held: dict, keys: tuple, entries: dict) -> None:
        """Of a dictionary with these keys the entries that count, two at least."""
        if keys not in self._alike:
            self._alike[keys] = operator.itemgetter(*entries), [], []
        _, dicts, values = self._alike[keys]
        dicts.append(held)
        values += entries.values()

    def note(self, container: Collection, values: list) -> None:
        """A container, and what it held."""
        self._note_size(container, values)
        if values:
            self._read.append(container)
            self._held += values

    def note_tensors(self, container: Collection, values: list, places: list[Place]) -> None:
        """A container of tensors and of None, and where the tensors lie; they are not held."""
        self._note_size(container, values)
        self._of_tensors.append(container)
        self._absent += [value is None for value in values]
        self._places += places

    def note_tensor(self, tensor: Tensor, place: Place) -> None:
        """A tensor that some other container holds."""
        self._loose.append(tensor)
        self._loose_places.append(place)

    def unchanged(self) -> bool:
        """Whether all of it would read the same; False where that cannot be told."""
        try:
            return self.can_tell and (
                all(map(operator.is_, map(vars, self._objects), self._dicts))
                and [*map(len, self._dicts)] == self._dict_sizes
                and [*map(len, self._sized)] == self._sizes
                and all(_same_entries(*alike) for alike in self._alike.values())
                and all(map(operator.is_, chain.from_iterable(self._read), self._held))
                and self._same_tensors()
            )
        # It is being changed; an entry, an object or a tensor's values have gone.
        except (RuntimeError, KeyError, ValueError, TypeError, ReferenceError):
            return False

    def _note_size(self, container: Collection, values: list) -> None:
        self._sized.append(container)
        self._sizes.append(len(values))

    def _same_tensors(self) -> bool:
        absent = functools.partial(operator.is_, None)
        values = [*chain.from_iterable(self._of_tensors)]
        tensors = [*filterfalse(absent, values), *self._loose]
        pointers, dtypes = self._before
        return (
            [*map(absent, values)] == self._absent
            and [*map(Tensor.data_ptr, tensors)] == pointers
            and [*map(_DTYPE, tensors)] == dtypes
        )

    @functools.cached_property
    def _before(self) -> tuple[list, list]:
        """Addresses and dtypes of all tensors that were read."""
        places = [*self._places, *self._loose_places]
        return [pointer for pointer, _ in places], [dtype for _, dtype in places]


def _same_entries(values: Callable, dicts: list[dict], held: list) -> bool:
    return all(map(operator.is_, chain.from_iterable(map(values, dicts)), held))
