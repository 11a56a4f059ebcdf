"""What the samples in the slots are conditioned on, row by row in buffers of their own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...sampling.network.conditioning import Tree, check_alike, tree_of


class Conditions:
    """Keyword arguments of the network for every slot, unconditional half first if there is one.

    The first request says what they look like; a later one of other shapes, names or plain values
    does not go together with it.
    """

    def __init__(self, slots: int, device: torch.device, halves: int = 1):
        self.slots, self.device, self._least = slots, device, halves
        self.forget()

    def forget(self) -> None:
        """Lets the next request say what conditions look like."""
        self.halves = self._least
        self._first: Tree | None = None
        self._rows: list[Any] = []

    def check(self, conditioning: Mapping | None, unconditional: Mapping | None) -> list[Tree]:
        """The halves of a request, unconditional first if it is given.

        Raises: TypeError, ValueError naming the argument and the path within it.
        """
        trees = [self._tree("conditioning", conditioning)]
        if unconditional is not None:
            trees.insert(0, self._tree("unconditional", unconditional))
            if trees[0].structure is not trees[1].structure:
                check_alike(*trees)
        first = self._first
        if first is not None and trees[-1].structure is not first.structure:
            names = "conditioning", "the first request's conditioning"
            check_alike(trees[-1], first, names)
        return trees

    def _tree(self, name: str, given: Mapping | None) -> Tree:
        """A half taken apart; at once where it is as flat as the first one, and alike.

        What shares the first one's `structure` goes together with it.
        """
        first = self._first
        if first is not None and len(first.structure) == 1 and isinstance(given, dict):
            leaves = {f"[{key!r}]": value for key, value in given.items()}
            if list(leaves) == list(first.leaves) and all(map(_alike, *_pairs(leaves, first))):
                return Tree(leaves, first.structure, first.rebuild)
        return tree_of(name, given, 1, self.device)

    def put(self, slot: int, trees: list[Tree]) -> None:
        """Writes what `check` gave into a slot's rows."""
        if self._first is None:
            count = self.slots * max(self.halves, len(trees))
            rows = [
                leaf.new_zeros((count, *leaf.shape[1:])) if isinstance(leaf, Tensor) else leaf
                for leaf in trees[-1].leaves.values()
            ]
            self._first, self._rows, self.halves = trees[-1], rows, count // self.slots
        if len(trees) > self.halves:
            rows = [
                torch.cat((row.new_zeros(row.shape), row)) if isinstance(row, Tensor) else row
                for row in self._rows
            ]
            self._rows, self.halves = rows, 2
        for half, tree in enumerate(trees, start=self.halves - len(trees)):
            for rows, path in zip(self._rows, self._first.leaves, strict=True):
                if isinstance(rows, Tensor):
                    rows[half * self.slots + slot].copy_(tree.leaves[path][0])

    def row(self, slot: int, unconditional: bool) -> int:
        """Where a slot's row is, of those that `keywords` takes."""
        return slot if unconditional or self.halves == 1 else self.slots + slot

    def keywords(self, rows: Tensor | slice) -> dict[str, Any]:
        """The model's keyword arguments for some rows, [rows] int64 or a slice."""
        leaves = [leaf[rows] if isinstance(leaf, Tensor) else leaf for leaf in self._rows]
        return self._first.rebuild(iter(leaves))

    def bytes(self) -> int:
        return sum(row.nbytes for row in self._rows if isinstance(row, Tensor))


def _pairs(leaves: dict[str, Any], first: Tree) -> tuple[Any, Any]:
    return leaves.values(), first.leaves.values()


def _alike(leaf: Any, other: Any) -> bool:
    """Whether tensors stack: of one kind, shape, dtype and device."""
    return (
        type(leaf) is type(other) is Tensor
        and leaf.shape == other.shape
        and leaf.dtype == other.dtype
        and leaf.device == other.device
    )
