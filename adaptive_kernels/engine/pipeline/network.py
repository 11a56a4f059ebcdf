"""A pipeline's network as the engine calls it: rows of latents, their timesteps and conditions."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .preamble import Call, First

# Pipelines hand on the scheduler's timesteps, or the share of 1,000 that they are.
_SCALES = (1.0, 1000.0)


class PipelineNetwork:
    """``model(model_input, timestep, **rows)``, made of two of a pipeline's own calls.

    Tensors with a row per row of the latents are conditions, whatever their place among the
    arguments, and go by its name; the others are the same for all samples.

    Args:
        one, two: the first call for one sample and for two; a tensor that grows has rows.

    Raises: ValueError where the calls cannot be understood.
    """

    def __init__(self, network: torch.nn.Module, one: First, two: Call):
        self.network, self.name = network, one.name
        self.dtype = one.model_input.dtype
        self.init_noise_sigma = one.table.init_noise_sigma
        self.halves = len(one.model_input) // len(one.latents)
        self._timestep_dtype = one.timestep.dtype
        self._divisor = _divisor(one)
        leaves, self._tree = _flat(one.keywords)
        others, tree = _flat(two.keywords)
        if tree != self._tree:
            raise ValueError("pipe must call its network alike for one prompt and for two")
        self.places: dict[str, int] = {}
        names = [key for key, _ in _pytree.tree_flatten_with_path(one.keywords)[0]]
        for place, (key, leaf, other) in enumerate(zip(names, leaves, others, strict=True)):
            if _has_rows(leaf, one) and _has_rows(other, two):
                self.places[_pytree.keystr(key)] = place
            elif isinstance(leaf, Tensor) and leaf.shape != other.shape:
                raise ValueError(
                    f"pipe must give its network a row per prompt in {_pytree.keystr(key)}, got "
                    f"{tuple(leaf.shape)} for one and {tuple(other.shape)} for two"
                )
        self._leaves = leaves

    def check(self, call: Call) -> None:
        """Raise ValueError unless a call differs from the first one in its conditions alone."""
        leaves, tree = _flat(call.keywords)
        rows = {place: name for name, place in self.places.items()}
        same = tree == self._tree
        for place, (own, other) in enumerate(zip(self._leaves, leaves, strict=False)):
            if place not in rows:
                same = same and _equal(own, other)
            elif other.shape[1:] != own.shape[1:]:
                raise ValueError(
                    f"{rows[place]} must have shape {(1, *own.shape[1:])} as of every prompt, got "
                    f"{(1, *other.shape[1:])}"
                )
        if not same:
            raise ValueError("the pipeline calls its network in another way for this request")

    def rows(self, call: Call, sample: int) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """(conditioning, unconditional) of a sample of a checked call, tensors [1, ...]."""
        leaves, batch = _flat(call.keywords)[0], len(call.latents)
        halves = len(call.model_input) // batch

        def half(number: int) -> dict[str, Tensor]:
            row = number * batch + sample
            # Embeddings that a user gives may be of another dtype than those that are made here.
            return {
                name: leaves[place][row : row + 1].to(self._leaves[place].dtype)
                for name, place in self.places.items()
            }

        return half(halves - 1), half(0) if halves == 2 else None

    def __call__(self, model_input: Tensor, timestep: Tensor, **rows: Tensor) -> Any:
        leaves = list(self._leaves)
        for name, place in self.places.items():
            leaves[place] = rows[name]
        keywords = _pytree.tree_unflatten(leaves, self._tree)
        timestep = timestep.to(self._timestep_dtype)
        keywords["timestep"] = timestep if self._divisor == 1 else timestep / self._divisor
        keywords[self.name] = model_input
        return self.network(**keywords, return_dict=False)


def _flat(keywords: dict[str, Any]) -> tuple[list, Any]:
    return _pytree.tree_flatten(keywords)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool((one == other).all())
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def _has_rows(leaf: Any, call: Call) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == len(call.model_input)


def _divisor(call: First) -> float:
    """What the scheduler's timesteps are divided by. Raises: ValueError where that is no scale."""
    first, given = float(call.table.timesteps[0]), float(call.timestep.reshape(-1)[0])
    for scale in _SCALES:
        # Half-precision pipelines round them.
        if abs(given * scale - first) <= 0.01 * abs(first):
            return scale
    raise ValueError(
        f"pipe must give its network the scheduler's timestep, {first:g}, or a thousandth of it, "
        f"got {given:g}"
    )
