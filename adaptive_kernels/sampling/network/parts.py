"""Containers taken apart by one level, and joined again around other parts."""

import collections
import contextlib
import dataclasses
import enum
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree


class Parts(NamedTuple):
    """A container taken apart by one level."""

    keys: list[str]
    children: list
    context: Any  # what else there is to it
    join: Callable[[list], Any]


def parts_of(value: Any) -> Parts | None:
    """A value by one level, None for a leaf."""
    if type(value) is dict:
        names = [*value]
        return Parts(
            [f"[{name!r}]" for name in names],
            [*value.values()],
            names,
            lambda given: dict(zip(names, given, strict=True)),
        )
    if isinstance(value, (type, enum.Enum, torch.Size, torch.nn.Module)):
        return None
    if dataclasses.is_dataclass(value):
        if isinstance(value, collections.OrderedDict):
            return _output(value)
        if not isinstance(value, (Mapping, Sequence)):
            return _dataclass(value)

    children, spec = pytree.tree_flatten(value, is_leaf=_below_first())
    if spec.is_leaf():
        return None
    keys = [f"[{number}]" for number in range(len(children))]
    if isinstance(value, Mapping) and len(value) == len(children):
        keys = [f"[{key!r}]" for key in value]
    if not any(child is value for child in children):
        # A container may be registered without paths.
        with contextlib.suppress(ValueError):
            named, _ = pytree.tree_flatten_with_path(value, is_leaf=lambda v: v is not value)
            keys = [pytree.keystr(key) for key, _ in named]
    return Parts(keys, children, spec, lambda given: pytree.tree_unflatten(given, spec))


def _below_first() -> Callable[[Any], bool]:
    """Asked of a value, then of its parts: whether it is a part, that may be the value again."""
    asked = itertools.count()
    return lambda _: next(asked) > 0


def _dataclass(value: Any) -> Parts:
    """All that an instance holds, fields or not."""
    held = held_by(value)

    def join(given: list) -> Any:
        twin = object.__new__(type(value))
        for name, child in zip(held, given, strict=True):
            object.__setattr__(twin, name, child)  # it may be frozen
        return twin

    return Parts([f".{name}" for name in held], [*held.values()], [*held], join)


def _output(value: collections.OrderedDict) -> Parts:
    """diffusers' and transformers' outputs: items, which attributes repeat, and other attributes.

    Not by way of pytree, which calls the class: that fails where a field is None.
    """
    items, others = dict(value), {k: v for k, v in vars(value).items() if k not in value}

    def join(given: list) -> Any:
        twin = type(value).__new__(type(value))
        for name, child in zip([*items, *others], given, strict=True):
            if name in items:
                collections.OrderedDict.__setitem__(twin, name, child)
            if name in vars(value):
                vars(twin)[name] = child
        return twin

    keys = [f"[{name!r}]" for name in items] + [f".{name}" for name in others]
    return Parts(keys, [*items.values(), *others.values()], [*items, *others], join)


def held_by(value: Any) -> dict[str, Any]:
    """An object's attributes of its own, those in slots too."""
    held = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in [slots] if isinstance(slots, str) else slots:
            private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{kind.__name__.lstrip('_')}{slot}" if private else slot
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                held[name] = getattr(value, name)
    return held
