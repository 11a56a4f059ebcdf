"""What a sampling gives: the latents and the record of its decisions."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .state import State


@dataclass(frozen=True)
class SamplingResult:
    """The latents of B samples, and who decided what on the way.

    T rows of the solver's table (its network calls when nothing is skipped), B samples.
    ``score[i]`` decided row i: left over right side of the criterion, NaN where none was asked.
    ``nonfinite``: whether a sample's latents hold NaN or Inf. ``executor``, ``executor_why``: which
    one ran, and why that one and not those before it.
    """

    latents: Tensor  # [B, ...] float32
    nfe: Tensor  # [B] int32: network calls per sample; a guided pair counts as one
    refreshed: Tensor  # [T, B] bool
    score: Tensor  # [T, B] float32
    nonfinite: Tensor  # [B] bool: NaN or Inf in the final latents
    executor: str = "eager"  # which one ran it: "graph", "groups" or "eager"
    executor_why: str = ""  # why that one, and why not those before it


@dataclass(frozen=True)
class StepInfo:
    """What ``callback`` is given after every tick: a network call and all until the next one.

    The tensors are the sampler's own buffers: read them, copy what shall outlive the call.
    """

    tick: int
    index: Tensor  # [B] int32: rows done
    nfe: Tensor  # [B] int32
    refreshed: Tensor  # [T, B] bool, filled up to index
    latents: Callable[[], Tensor]  # () -> [B, ...] float32, each sample at its own step


def info_of(state: State, tick: int, shape: tuple[int, ...]) -> StepInfo:
    return StepInfo(
        tick, state.index, state.nfe, state.refreshed, lambda: state.current().view(shape)
    )


def result_of(
    state: State, shape: tuple[int, ...], executor: str, why: str, bar: Any
) -> SamplingResult:
    latents = state.current()
    nonfinite = ~latents.isfinite().all(dim=1)
    bar.update(len(state.rows) * len(latents) - bar.n)
    # Copies: the buffers of a captured graph are the next call's too.
    return SamplingResult(
        latents=latents.view(shape),
        nfe=state.nfe.clone(),
        refreshed=state.refreshed.clone(),
        score=state.score.clone(),
        nonfinite=nonfinite,
        executor=executor,
        executor_why=why,
    )


def warn_of_nonfinite(result: SamplingResult) -> None:
    """Warns the sampler's caller of NaN and Inf; a graph's first wait for the device."""
    if bool(result.nonfinite.any()):
        which = result.nonfinite.nonzero()[:, 0].tolist()
        warnings.warn(
            f"the latents of samples {which} hold NaN or Inf (result.nonfinite)",
            RuntimeWarning,
            stacklevel=4,
        )
