"""What there is to see of a module, and whether it would still be the same: by loops in C alone.

A network is looked at before every sampling. A walk through it reads dictionaries, lists and where
its tensors lie; as long as these hold the very same objects, and the values lie where they lay,
another walk would find nothing else.
"""

import collections
import operator
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import chain, filterfalse
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .facts import MOST, ORDINARY, PLAIN, Same, location

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# What every module holds; looked at apart, or of no effect on a call.
_OWN = {*torch.nn.Module().__dict__} - {"training"}
_UNUSED = _OWN - {"_parameters", "_buffers", "_modules", *_HOOKS}
# Values of a dictionary that show what it holds at any time, and not what it held.
_LIVE = (type({}.values()), type(collections.OrderedDict().values()))


class Walk:
    """A module walked through: by hand, as torch's own walks take five times as long.

    facts: where its tensors lie, its hooks and plain attributes, to compare with ``==``.
    elements: of its floating-point parameters, by dtype.

    Layers that are replaced live on until the walk is forgotten; parameters do not.
    """

    def __init__(self, module: torch.nn.Module):
        self.facts: list = [Same(module)]
        self.elements: collections.Counter[torch.dtype] = collections.Counter()
        self._modules: list[torch.nn.Module] = []
        self._dicts: list[dict] = []
        # Modules' dictionaries by their keys: what gets the values that count, and the values.
        self._alike: dict[tuple, tuple[Callable, list[dict], list]] = {}
        # Other containers that were read, their lengths, and what those that are not empty held.
        self._sized: list[Collection] = []
        self._sizes: list[int] = []
        self._read: list[Iterable] = []
        self._held: list = []
        self._of_tensors: list[Iterable] = []
        self._loose: list[Tensor] = []
        self._can_tell = True
        self._through(module)
        self._sizes[:0] = map(len, self._dicts)
        self._located = self._locations()

    def unchanged(self) -> bool:
        """Whether another walk would find the same; False where that cannot be told."""
        try:
            return self._can_tell and (
                all(map(operator.is_, map(vars, self._modules), self._dicts))
                and [*map(len, self._dicts), *map(len, self._sized)] == self._sizes
                and all(self._same_attributes(*alike) for alike in self._alike.values())
                and all(map(operator.is_, chain.from_iterable(self._read), self._held))
                and self._locations() == self._located
            )
        # It is being changed, or a tensor has no values any more; an attribute has gone.
        except (RuntimeError, KeyError):
            return False

    @staticmethod
    def _same_attributes(values: Callable, dicts: list[dict], held: list) -> bool:
        return all(map(operator.is_, chain.from_iterable(map(values, dicts)), held))

    def _locations(self) -> list | None:
        if not self._can_tell:
            return None
        given = filterfalse(partial(operator.is_, None), chain.from_iterable(self._of_tensors))
        tensors = [*given, *self._loose]
        return [*map(Tensor.data_ptr, tensors), *map(operator.attrgetter("dtype"), tensors)]

    def _through(self, module: torch.nn.Module) -> None:
        stack, visited, counted = [module], {id(module)}, set()
        while stack:
            current = stack.pop()
            self._modules.append(current)
            self._dicts.append(vars(current))
            attributes = {k: v for k, v in vars(current).items() if k not in _UNUSED}
            self._note_attributes(vars(current), attributes)
            for parameter in self._tensors(current, "_parameters"):
                if id(parameter) not in counted and not is_lazy(parameter):
                    counted.add(id(parameter))
                    if parameter.is_floating_point():
                        self.elements[parameter.dtype] += parameter.numel()
            self._tensors(current, "_buffers")
            for inner in self._values(current, "_modules", self._note):
                if inner is not None and id(inner) not in visited:
                    visited.add(id(inner))
                    stack.append(inner)
            for name in _HOOKS:
                self.facts += map(Same, self._values(current, name, self._note))
            for name, value in attributes.items():
                if name not in _OWN:
                    self._attribute(value)

    def _tensors(self, module: torch.nn.Module, name: str) -> list[Tensor]:
        """Parameters or buffers, each with its place in the facts."""

        def note(view: Collection, values: list) -> None:
            self._of_tensors.append(view)

        found = [v for v in self._values(module, name, note) if v is not None]
        for tensor in found:
            self._locate(tensor)
        return found

    def _values(
        self, module: torch.nn.Module, name: str, note: Callable[[Collection, list], None]
    ) -> list:
        held = vars(module).get(name)
        if held is None:
            self._can_tell = False
            return [] if name in _HOOKS else list(getattr(module, name.removeprefix("_"))())
        view = held.values()
        values = [*view]
        note(view, values)
        # Of a scripted module's they are copies.
        self._can_tell = self._can_tell and isinstance(view, _LIVE)
        return values

    def _note_attributes(self, held: dict, attributes: dict) -> None:
        """A module's dictionary was read."""
        keys = tuple(held)
        if keys not in self._alike:
            # Five at least are every module's own; of one alone a getter gives no tuple.
            self._alike[keys] = operator.itemgetter(*attributes), [], []
        _, dicts, values = self._alike[keys]
        dicts.append(held)
        values += attributes.values()

    def _note(self, view: Collection, values: list) -> None:
        """A container was read."""
        self._sized.append(view)
        self._sizes.append(len(values))
        if values:
            self._read.append(view)
            self._held += values

    def _locate(self, tensor: Tensor) -> None:
        address = location(tensor)
        self.facts += address
        # Others have no place, or their values in tensors within.
        if type(tensor) not in ORDINARY or isinstance(address[0], Same):
            self._can_tell = False

    def _attribute(self, value: Any) -> None:
        kind = type(value)
        if kind in PLAIN:
            self.facts.append(value)
        elif isinstance(value, Tensor):
            self._locate(value)
            self._loose.append(value)
        elif isinstance(value, (dict, list, tuple, set)):
            view = value.values() if isinstance(value, dict) else value
            entries = [*view] if len(value) <= MOST else []
            # It might come to be short enough, or its values are a copy.
            live = view is value or isinstance(view, _LIVE)
            self._can_tell = self._can_tell and live and len(value) <= MOST
            self._note(view, entries)
            self.facts += [entry for entry in entries if type(entry) in PLAIN]
        elif isinstance(value, torch.nn.Module):
            self.facts.append(Same(value))
        else:
            # An attention processor, say, and its scale.
            view = getattr(value, "__dict__", {}).values()
            parts = [*view]
            self._note(view, parts)
            self._can_tell = self._can_tell and isinstance(view, _LIVE)
            self.facts += [Same(value), *(part for part in parts if type(part) in PLAIN)]


class Look:
    """One call's look at the modules it meets, each looked at once.

    Args:
        before: what an earlier look has `seen`, by the module's id.
    """

    def __init__(self, before: dict[int, Walk] | None = None):
        self._before = before or {}
        self.seen: dict[int, Walk] = {}

    def walk(self, module: torch.nn.Module) -> Walk:
        """The module's walk, an earlier one's where nothing has changed."""
        walk = self.seen.get(id(module))
        if walk is None:
            walk = self._before.get(id(module))
            if walk is None or not walk.unchanged():
                walk = Walk(module)
            self.seen[id(module)] = walk
        return walk
