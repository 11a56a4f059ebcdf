"""What a user conditions on, as a tree: its leaves by path, and the tree around other leaves."""

import collections
import dataclasses
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .parts import held_by, parts_of

# How far, and of a container at how many, a value that nobody can take apart is looked into.
_DEPTH, _MOST = 3, 1000
_ROWS = (
    "what is the same for all samples belongs into the function that calls the model, such as "
    "adaptive_kernels.denoiser(model, name=value)"
)


@dataclasses.dataclass(frozen=True)
class Tree:
    """One half's keyword arguments.

    leaves: by path, tensors with a row per sample and plain values. structure: what stands around
    them, (path, type, what else there is to it). rebuild: makes the tree around other leaves, given
    in the same order; what holds no tensor is the user's own object again.
    """

    leaves: dict[str, Any]
    structure: list[tuple[str, type, Any]]
    rebuild: Callable[[Iterator], dict]


def tree_of(name: str, value: Any, batch: int, device: torch.device) -> Tree:
    """Take a mapping of keyword arguments apart, every tensor checked to have a row per sample.

    One row alone is every sample's. Taken apart are containers that `torch.utils._pytree` knows and
    dataclasses; NumPy arrays become tensors.

    Raises: ValueError, TypeError naming the path.
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a mapping of the model's keyword arguments, got {type(value).__name__}"
        )
    taken = _Taken(name, batch, device)
    rebuild = taken.apart("", {} if value is None else dict(value), frozenset())
    for path, leaf in taken.leaves.items():
        if not isinstance(leaf, Tensor):
            continue
        if leaf.dim() > 0 and len(leaf) == 1 != batch:
            # A network may want to see it from another side, or write into it.
            taken.leaves[path] = leaf = leaf.expand(batch, *leaf.shape[1:]).contiguous()
        if leaf.dim() == 0 or leaf.shape[0] != batch:
            raise ValueError(
                f"{name}{path} must have one row per sample, first dimension {batch}, "
                f"got shape {tuple(leaf.shape)}; {_ROWS}"
            )
        if leaf.device != device:
            raise ValueError(f"{name}{path} must be on {device} as the noise is, got {leaf.device}")
    return Tree(taken.leaves, taken.structure, rebuild)


class _Taken:
    """What has been found of a tree so far."""

    def __init__(self, name: str, batch: int, device: torch.device) -> None:
        self.name, self.batch, self.device = name, batch, device
        self.leaves: dict[str, Any] = {}
        self.structure: list[tuple[str, type, Any]] = []

    def apart(self, path: str, value: Any, within: frozenset) -> Callable[[Iterator], Any]:
        """Note the leaves of a value; return what makes it of others.

        within: ids of what it stands in.
        """
        if isinstance(value, np.ndarray):
            value = _tensor(self.name + path, value, self.device)
        parts = None if isinstance(value, Tensor) else parts_of(value)
        if parts is None:
            _check_plain(self.name + path, value, self.batch)
            if path in self.leaves:
                raise ValueError(f"{self.name}{path} must be one key, got two that print alike")
            self.leaves[path] = value
            return next
        if id(value) in within:
            raise ValueError(f"{self.name}{path} must not hold itself, got {type(value).__name__}")
        self.structure.append((path, type(value), parts.context))
        before = len(self.leaves)
        rebuilds = [
            self.apart(path + key, child, within | {id(value)})
            for key, child in zip(parts.keys, parts.children, strict=True)
        ]
        found = itertools.islice(self.leaves.values(), before, None)
        cut = any(isinstance(leaf, Tensor) for leaf in found)

        def rebuild(given: Iterator) -> Any:
            children = [make(given) for make in rebuilds]
            # A counter or a setting stays the object that it is.
            return parts.join(children) if cut or not path else value

        return rebuild


def _tensor(path: str, array: np.ndarray, device: torch.device) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{path} must be an array without a mask, got a {type(array).__name__}")
    try:
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.tensor(np.ascontiguousarray(native).reshape(array.shape), device=device)
    except (TypeError, ValueError):
        raise TypeError(f"{path} must be numbers, got a NumPy array of {array.dtype}") from None


def _check_plain(path: str, value: Any, batch: int) -> None:
    """Raise TypeError for a value that hides rows of samples: they would not be cut to them."""
    if isinstance(value, (types.GeneratorType, map, zip, filter)):
        raise TypeError(
            f"{path} must be the same at every call of the model, got a {type(value).__name__}, "
            "which the first call uses up"
        )
    if not isinstance(value, Tensor) and _hides_rows(value, batch, _DEPTH):
        raise TypeError(
            f"{path} must be a tensor, a plain value, a dataclass or a container that "
            f"torch.utils._pytree knows, got {type(value).__name__} with {batch} rows inside: pass "
            "these by themselves, or register it with torch.utils._pytree.register_pytree_node; "
            f"{_ROWS}"
        )


def _hides_rows(value: Any, batch: int, depth: int) -> bool:
    """Whether a value has tensors or arrays inside with as many rows as there are samples."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim > 0 and value.shape[0] == batch
    if depth == 0 or isinstance(value, (type, torch.nn.Module, types.FunctionType)):
        return False
    parts: Any = held_by(value).values()
    if isinstance(value, (dict, types.MappingProxyType)):
        parts = itertools.chain(parts, value.values())
    elif isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        parts = itertools.chain(parts, value)
    return any(_hides_rows(part, batch, depth - 1) for part in itertools.islice(parts, _MOST))


def check_alike(
    first: Tree, second: Tree, names: tuple[str, str] = ("unconditional", "conditioning")
) -> None:
    """Raise ValueError unless trees stack: the same paths, kinds, shapes and plain values.

    first, second: such as the unconditional half and the conditional one, called by `names`.
    """
    own, other = names
    kinds = [{path: kind for path, kind, _ in half.structure} for half in (first, second)]
    for path in {**kinds[0], **kinds[1]}:
        a, b = (half.get(path) for half in kinds)
        if _family(a) is not _family(b):
            got = " and ".join("nothing" if kind is None else kind.__name__ for kind in (a, b))
            raise ValueError(f"{own}{path} and {other}{path} must be of one kind, got {got}")
    for path in {**second.leaves, **first.leaves}:
        for name, half in ((own, first), (other, second)):
            if path not in half.leaves:
                raise ValueError(
                    f"{own} and {other} must name the same arguments; {name} has no {path}"
                )
        a, b = first.leaves[path], second.leaves[path]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(
                    f"{own}{path} must have the shape and dtype of {other}{path}, "
                    f"{tuple(b.shape)} {b.dtype}, got {tuple(a.shape)} {a.dtype}"
                )
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or (a is not b and a != b):
            raise ValueError(
                f"{own}{path} must equal {other}{path} where one of them is no "
                f"tensor, got {_kind(a)} and {_kind(b)}"
            )


def _family(kind: type | None) -> type | None:
    """Dicts of all kinds are one, and so are lists and tuples."""
    families = (dict, list, tuple)
    found = next((f for f in families if kind is not None and issubclass(kind, f)), kind)
    return list if found is tuple else found


def _kind(leaf: Any) -> str:
    return f"a tensor {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
