"""What a user conditions on, as a tree: its leaves by path, and the tree around other leaves."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# How far a value that nobody can take apart is looked into for tensors.
_DEPTH = 3


@dataclasses.dataclass(frozen=True)
class Tree:
    """One half's keyword arguments.

    leaves: by path, tensors with a row per sample and plain values. structure: what stands around
    them, to compare. rebuild: makes the tree around other leaves, given in the same order.
    """

    leaves: dict[str, Any]
    structure: list
    rebuild: Callable[[Iterator], dict]


def tree_of(name: str, value: Any, batch: int, device: torch.device) -> Tree:
    """Take a mapping of keyword arguments apart, every tensor checked to have a row per sample.

    Taken apart are containers that `torch.utils._pytree` knows and dataclasses; NumPy arrays become
    tensors.

    Raises: ValueError, TypeError naming the path.
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a mapping of the model's keyword arguments, got {type(value).__name__}"
        )
    leaves: dict[str, Any] = {}
    structure: list = []
    rebuild = _take_apart(name, "", {} if value is None else dict(value), leaves, structure, device)
    for path, leaf in leaves.items():
        if not isinstance(leaf, Tensor):
            continue
        if leaf.dim() == 0 or leaf.shape[0] != batch:
            raise ValueError(
                f"{name}{path} must have one row per sample, first dimension {batch}, "
                f"got shape {tuple(leaf.shape)}"
            )
        if leaf.device != device:
            raise ValueError(f"{name}{path} must be on {device} as the noise is, got {leaf.device}")
    return Tree(leaves, structure, rebuild)


def _take_apart(
    name: str, path: str, value: Any, leaves: dict, structure: list, device: torch.device
) -> Callable[[Iterator], Any]:
    if isinstance(value, np.ndarray):
        value = _tensor(name + path, value, device)
    parts = None if isinstance(value, Tensor) else _parts(value)
    if parts is None:
        _check_plain(name + path, value)
        leaves[path] = value
        return next
    keys, children, context, join = parts
    structure.append((path, type(value), context))
    rebuilds = [
        _take_apart(name, path + key, child, leaves, structure, device)
        for key, child in zip(keys, children, strict=True)
    ]
    return lambda given: join([rebuild(given) for rebuild in rebuilds])


def _parts(value: Any) -> tuple[list[str], list, Any, Callable[[list], Any]] | None:
    """Names, children, what else there is to it, and how to join others; None for a leaf."""

    def inside(other: Any) -> bool:
        return other is not value

    if isinstance(value, torch.Size):  # pytree would make a tuple of it
        return None
    children, spec = pytree.tree_flatten(value, is_leaf=inside)
    if not (len(children) == 1 and children[0] is value):
        try:
            named, _ = pytree.tree_flatten_with_path(value, is_leaf=inside)
            keys = [pytree.keystr(key) for key, _ in named]
        except ValueError:  # a container registered without paths
            keys = [f"[{number}]" for number in range(len(children))]
            if isinstance(value, Mapping) and len(value) == len(children):
                keys = [f"[{key!r}]" for key in value]
        return keys, children, spec, lambda given: pytree.tree_unflatten(given, spec)
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, torch.nn.Module)):
        names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]

        def join(given: list) -> Any:
            twin = copy.copy(value)
            for name, child in zip(names, given, strict=True):
                object.__setattr__(twin, name, child)  # it may be frozen
            return twin

        return [f".{name}" for name in names], [getattr(value, n) for n in names], names, join
    return None


def _tensor(path: str, array: np.ndarray, device: torch.device) -> Tensor:
    try:
        return torch.tensor(np.ascontiguousarray(array).reshape(array.shape), device=device)
    except TypeError:
        raise TypeError(f"{path} must be numbers, got a NumPy array of {array.dtype}") from None


def _check_plain(path: str, value: Any) -> None:
    """Raise TypeError for a value that hides tensors: they would not be cut to the samples."""
    if isinstance(value, Iterator):
        raise TypeError(
            f"{path} must be the same at every call of the model, got {type(value).__name__}, "
            "which the first call uses up"
        )
    if not isinstance(value, Tensor) and _hides_tensors(value, _DEPTH):
        raise TypeError(
            f"{path} must be a tensor, a plain value or a container that "
            f"torch.utils._pytree knows, got {type(value).__name__} with tensors inside; "
            "pass the tensors, or register it with torch.utils._pytree.register_pytree_node"
        )


def _hides_tensors(value: Any, depth: int) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return True
    if depth == 0 or isinstance(value, (str, bytes, type, torch.nn.Module)):
        return False
    held = list(getattr(value, "__dict__", {}).values())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        held += [
            getattr(value, slot, None) for slot in ([slots] if isinstance(slots, str) else slots)
        ]
    if isinstance(value, Mapping):
        held += value.values()
    elif isinstance(value, (Sequence, Set)) and not isinstance(value, (range, torch.Size)):
        held += value
    return any(_hides_tensors(part, depth - 1) for part in held)


def check_alike(unconditional: Mapping[str, Any], conditioning: Mapping[str, Any]) -> None:
    """Raise ValueError unless halves stack: the same paths, shapes and plain values."""
    for path in {**conditioning, **unconditional}:
        for name, half in (("unconditional", unconditional), ("conditioning", conditioning)):
            if path not in half:
                raise ValueError(
                    f"unconditional and conditioning must name the same arguments; "
                    f"{name} has no {path}"
                )
        a, b = unconditional[path], conditioning[path]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(
                    f"unconditional{path} must have the shape and dtype of conditioning{path}, "
                    f"{tuple(b.shape)} {b.dtype}, got {tuple(a.shape)} {a.dtype}"
                )
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or (a is not b and a != b):
            raise ValueError(
                f"unconditional{path} must equal conditioning{path} where one of them is no "
                f"tensor, got {_kind(a)} and {_kind(b)}"
            )


def _kind(leaf: Any) -> str:
    return f"a tensor {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
