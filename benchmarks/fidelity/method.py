"""What a method of the laboratory is: a name, a setting, and a function from a batch to latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .problem import Batch, Problem


@dataclass(frozen=True)
class Outcome:
    """What one run of a method gives."""

    latents: Tensor  # [B, ...] float32
    nfe: Tensor  # [B] float64: calls of the whole network, or what they cost
    refreshed: Tensor | None = None  # [T, B] bool: who called the network at which step
    score: Tensor | None = None  # [T, B]: left over right side of the rule, NaN where none


Run = Callable[[Problem, Batch], Outcome]


@dataclass(frozen=True)
class Method:
    """A way to sample with fewer calls; `make(setting)` is one of its members.

    `knob` = (least, most) makes the setting a positive number whose calls fall as it grows, to be
    tuned until the mean NFE meets a budget. Otherwise `settings(problem, budget)` names those that
    come closest to it: none, one, or two around it.
    """

    name: str
    make: Callable[[float], Run]
    knob: tuple[float, float] | None = None
    settings: Callable[[Problem, float], Sequence[float]] | None = None
