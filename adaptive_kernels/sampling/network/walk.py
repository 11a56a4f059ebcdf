"""What there is to see of a module, found once, and again only where something has changed."""

import collections
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .facts import MOST, ORDINARY, PLAIN, Same, location
from .reading import LIVE, Place, Reading

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# What every module holds; looked at apart, or of no effect on a call.
_OWN = {*torch.nn.Module().__dict__} - {"training"}
_UNUSED = _OWN - {"_parameters", "_buffers", "_modules", *_HOOKS}


class Walk:
    """A module walked through: by hand, as torch's own walks take five times as long.

    facts: where its tensors lie, its hooks and plain attributes, to compare with ``==``.
    elements: of its floating-point parameters, by dtype.

    Layers and attributes that are replaced live on until the walk is forgotten; parameters and
    buffers do not.
    """

    def __init__(self, module: torch.nn.Module):
        self.facts: list = [Same(module)]
        self.elements = elements_of(module)
        self._reading = Reading()
        self._through(module)

    def unchanged(self) -> bool:
        """Whether another walk would find the same; False where that cannot be told."""
        return self._reading.unchanged()

    def _through(self, module: torch.nn.Module) -> None:
        reading, stack, visited = self._reading, [module], {id(module)}
        while stack:
            current = stack.pop()
            held = vars(current).copy()
            attributes = {name: value for name, value in held.items() if name not in _UNUSED}
            reading.note_object(current, vars(current), len(held))
            reading.note_entries(vars(current), tuple(held), attributes)
            for name in ("_parameters", "_buffers"):
                self._values(current, name, self._locate_all)
            for inner in self._values(current, "_modules", reading.note):
                if inner is not None and id(inner) not in visited:
                    visited.add(id(inner))
                    stack.append(inner)
            for name in _HOOKS:
                self.facts += map(Same, self._values(current, name, reading.note))
            for name, value in attributes.items():
                if name not in _OWN:
                    self._attribute(value)

    def _values(
        self, module: torch.nn.Module, name: str, note: Callable[[Collection, list], None]
    ) -> list:
        """What is in one of a module's own dictionaries."""
        held = vars(module).get(name)
        if held is None:
            self._reading.can_tell = False
            return [] if name in _HOOKS else list(getattr(module, name.removeprefix("_"))())
        view = held.values()
        values = [*view]
        note(view, values)
        # Of a scripted module's they are copies.
        self._tells(isinstance(view, LIVE))
        return values

    def _locate_all(self, view: Collection, values: list) -> None:
        """Parameters or buffers."""
        places = [self._locate(value) for value in values if value is not None]
        self._reading.note_tensors(view, values, places)

    def _locate(self, tensor: Tensor) -> Place:
        place = location(tensor)
        self.facts += place
        # Others have no place, or their values in tensors within.
        self._tells(type(tensor) in ORDINARY and not isinstance(place[0], Same))
        return tuple(place)

    def _attribute(self, value: Any) -> None:
        reading, kind = self._reading, type(value)
        if kind in PLAIN:
            self.facts.append(value)
        elif isinstance(value, Tensor):
            reading.note_tensor(value, self._locate(value))
        elif isinstance(value, (dict, list, tuple, set)):
            view = value.values() if isinstance(value, dict) else value
            entries = [*view] if len(value) <= MOST else []
            # It might come to be short enough, or its values are a copy.
            self._tells(len(value) <= MOST and (view is value or isinstance(view, LIVE)))
            reading.note(view, entries)
            self.facts += [entry for entry in entries if type(entry) in PLAIN]
        elif isinstance(value, torch.nn.Module):
            self.facts.append(Same(value))
        else:
            # An attention processor, say, and its scale.
            held = getattr(value, "__dict__", {})
            view = held.values()
            parts = [*view]
            reading.note(view, parts)
            if type(held) is dict and hasattr(value, "__dict__"):
                reading.note_object(value, held, len(parts))
            self._tells(isinstance(view, LIVE))
            self.facts += [Same(value), *(part for part in parts if type(part) in PLAIN)]

    def _tells(self, whether: bool) -> None:
        self._reading.can_tell = self._reading.can_tell and whether


class Look:
    """One call's look at the modules it meets, each looked at once.

    Args:
        before: what an earlier look has `seen`, by the module's id.
    """

    def __init__(self, before: Mapping[int, Walk] | None = None):
        self._before = dict(before or {})
        self.seen: dict[int, Walk] = {}

    def walk(self, module: torch.nn.Module) -> Walk:
        """The module's walk, an earlier one's where nothing has changed."""
        walk = self._known(module)
        if walk is None:
            walk = self.seen[id(module)] = Walk(module)
        return walk

    def elements(self, module: torch.nn.Module) -> Mapping[torch.dtype, int]:
        """Of its floating-point parameters, by dtype; for this alone it is not walked through."""
        walk = self._known(module)
        return elements_of(module) if walk is None else walk.elements

    def _known(self, module: torch.nn.Module) -> Walk | None:
        if id(module) not in self.seen and id(module) in self._before:
            walk = self._before.pop(id(module))
            if walk.unchanged():
                self.seen[id(module)] = walk
        return self.seen.get(id(module))


def elements_of(module: torch.nn.Module) -> collections.Counter[torch.dtype]:
    """How many elements its floating-point parameters have, by dtype."""
    found: collections.Counter[torch.dtype] = collections.Counter()
    for parameter in module.parameters():
        if parameter.is_floating_point() and not is_lazy(parameter):
            found[parameter.dtype] += parameter.numel()
    return found
