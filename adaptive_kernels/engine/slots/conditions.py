"""What the samples in the slots are conditioned on, row by row in buffers of their own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...sampling.conditioning import Tree, check_alike, tree_of


class Conditions:
    """Keyword arguments of the network for every slot, unconditional half first if there is one.

    The first request says what they look like; a later one of other shapes, names or plain values
    does not go together with it.
    """

    def __init__(self, slots: int, device: torch.device):
        self.slots, self.device = slots, device
        self.forget()

    def forget(self) -> None:
        """Lets the next request say what conditions look like."""
        self.halves = 1
        self._first: Tree | None = None
        self._rows: list[Any] = []

    def check(self, conditioning: Mapping | None, unconditional: Mapping | None) -> list[Tree]:
        """The halves of a request, unconditional first if it is given.

        Raises: TypeError, ValueError naming the argument and the path within it.
        """
        trees = [tree_of("conditioning", conditioning, 1, self.device)]
        if unconditional is not None:
            trees.insert(0, tree_of("unconditional", unconditional, 1, self.device))
            check_alike(*trees)
        if self._first is not None:
            check_alike(
                trees[-1], self._first, ("conditioning", "the first request's conditioning")
            )
        return trees

    def put(self, slot: int, trees: list[Tree]) -> None:
        """Writes what `check` gave into a slot's rows."""
        if self._first is None:
            self._first = trees[-1]
            self._rows = [
                leaf.new_zeros((self.slots, *leaf.shape[1:])) if isinstance(leaf, Tensor) else leaf
                for leaf in trees[-1].leaves.values()
            ]
        if len(trees) > self.halves:
            self.halves = 2
            self._rows = [
                torch.cat((row.new_zeros(row.shape), row)) if isinstance(row, Tensor) else row
                for row in self._rows
            ]
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
