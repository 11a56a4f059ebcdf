"""The rows that a call of the network is conditioned on, and their buffers for a capture."""

import copy
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .conditioning import Tree


class Rows(NamedTuple):
    """A tensor of conditioning, but for its values."""

    shape: tuple[int, ...]  # a row for every row of the network
    dtype: torch.dtype
    device: torch.device


class Conditioned:
    """What one call of the network is conditioned on: one half's rows, or both halves' stacked."""

    def __init__(self, trees: list[Tree]):
        self.halves, self._tree = len(trees), trees[-1]
        self.structure = self._tree.structure
        leaves = [[tree.leaves[path] for path in self._tree.leaves] for tree in trees]
        # Of every leaf its halves, which are stacked where they are asked for.
        self._parts = list(zip(*leaves, strict=True))

    @functools.cached_property
    def leaves(self) -> list:
        """The leaves of all samples, halves stacked."""
        return self._join(None)

    @functools.cached_property
    def _all(self) -> dict:
        return self._tree.rebuild(iter(self.leaves))

    def keywords(self, samples: Tensor | None) -> dict:
        """The keyword arguments of `samples` (None: all)."""
        return self._all if samples is None else self._tree.rebuild(iter(self._join(samples)))

    def conditions(self) -> list:
        """Plain leaves, and of tensors, halves stacked, all but their values."""
        return [
            Rows((len(parts) * len(last), *last.shape[1:]), last.dtype, last.device)
            if isinstance(last := parts[-1], Tensor)
            else last
            for parts in self._parts
        ]

    def fixed(self) -> "Conditioned":
        twin = copy.copy(self)
        twin.leaves = [v.clone() if isinstance(v, Tensor) else v for v in self._join(None)]
        twin.__dict__.pop("_all", None)
        twin._parts = []
        return twin

    def write(self, buffers: list) -> None:
        """Writes the leaves of all samples into buffers that were made for such ones."""
        for buffer, parts in zip(buffers, self._parts, strict=True):
            if not isinstance(buffer, Tensor):
                continue
            if len(parts) == 1:
                buffer.copy_(parts[0])
                continue
            try:
                torch.cat(parts, out=buffer)
            except RuntimeError:  # a part of the buffer itself, which a network kept and gave back
                buffer.copy_(torch.cat(parts))

    def _join(self, samples: Tensor | None) -> list:
        """The leaves of `samples` (None: all), halves stacked."""

        def join(parts):
            if not isinstance(parts[-1], Tensor):
                return parts[-1]
            if samples is not None:
                parts = [part[samples] for part in parts]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        return [join(parts) for parts in self._parts]
