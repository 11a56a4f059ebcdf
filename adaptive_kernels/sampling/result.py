"""What a sampling gives: the latents and the record of its decisions."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..rules import criteria, defect
from ..solvers.table import SolverTable
from .state import State


@dataclass(frozen=True)
class SamplingResult:
    """The latents of B samples, and who decided what on the way.

    T rows of the solver's table (its network calls when nothing is skipped), B samples.
    ``score[i]`` decided row i: left over right side of the criterion, NaN where none was asked.
    ``nonfinite``: whether a sample's latents hold NaN or Inf. ``executor``, ``executor_why``: which
    one ran, and why that one and not those before it. ``output_noise``: what ``defect`` found of
    the network's own noise in guided outputs, rms in their units; 0 where it looked for none.
    """

    latents: Tensor  # [B, ...] float32
    nfe: Tensor  # [B] int32: network calls per sample; a guided pair counts as one
    refreshed: Tensor  # [T, B] bool
    score: Tensor  # [T, B] float32
    nonfinite: Tensor  # [B] bool: NaN or Inf in the final latents
    executor: str = "eager"  # which one ran it: "graph", "groups" or "eager"
    executor_why: str = ""  # why that one, and why not those before it
    output_noise: Tensor | None = None  # [B] float32

    def __repr__(self) -> str:
        lost = f", {count} with NaN or Inf" if (count := int(self.nonfinite.sum())) else ""
        return (
            f"SamplingResult(latents {list(self.latents.shape)}, "
            f"NFE {_calls(self.nfe, len(self.refreshed))}, executor {self.executor!r}{lost})"
        )


@dataclass(frozen=True)
class StepInfo:
    """What ``callback`` is given after every tick: a network call and all until the next one.

    The tensors are the sampler's own buffers: read them, copy what shall outlive the call. Latents
    to go on with are returned by the callback; what is written into a copy changes nothing.
    """

    tick: int
    index: Tensor  # [B] int32: rows done
    nfe: Tensor  # [B] int32
    refreshed: Tensor  # [T, B] bool, filled up to index
    latents: Callable[[], Tensor]  # () -> [B, ...] float32, each sample at its own step
    _table: SolverTable

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents at the noise level that every sample stands at.

            alpha_i clean + sigma_i noise,  i = index; the level of the result for a finished one

        Inpainting keeps what is known: a callback that returns
        ``mask * info.latents() + (1 - mask) * info.noised(image, noise)``.

        Args:
            clean, noise: [B, ...] or what broadcasts to it; noise is standard normal.

        Returns: [B, ...] float32.
        Raises: ValueError for a solver whose noise levels are not known.
        """
        levels = self._table.levels
        if levels is None:
            raise ValueError(
                f"noised() needs a solver whose noise levels are known, got {self._table}"
            )
        index = self.index.long()
        ones = [1] * (self.latents().dim() - 1)
        alpha, sigma = (
            value.to(index.device)[index].float().view(-1, *ones)
            for value in (levels.alpha, levels.sigma)
        )
        return alpha * clean.float() + sigma * noise.float()

    def __repr__(self) -> str:
        steps = len(self.refreshed)
        return (
            f"StepInfo(tick {self.tick}, {len(self.index)} samples, "
            f"steps done {_calls(self.index, steps)}, NFE {_calls(self.nfe, steps)})"
        )


def _calls(counts: Tensor, steps: int) -> str:
    """Mean and range of a count per sample, out of the table's rows."""
    if not len(counts):
        return f"none of {steps}"
    mean, least, most = counts.double().mean(), counts.min(), counts.max()
    spread = "" if least == most else f" ({int(least)}-{int(most)})"
    return f"{float(mean):.1f} of {steps}{spread}"


def info_of(state: State, tick: int, shape: tuple[int, ...], table: SolverTable) -> StepInfo:
    return StepInfo(
        *(tick, state.index, state.nfe, state.refreshed),
        *(lambda: state.current().view(shape), table),
    )


def result_of(
    state: State, shape: tuple[int, ...], executor: str, why: str, bar: Any
) -> SamplingResult:
    latents = state.final()
    # Of NaN and Inf alone the difference to itself is not zero.
    nonfinite = (latents - latents).any(dim=1)
    bar.update(state.tables.rows.shape[0] * latents.shape[0] - bar.n)
    # Copies: the buffers of a captured graph are the next call's too.
    return SamplingResult(
        latents=latents.view(shape),
        nfe=state.nfe.clone(),
        refreshed=state.refreshed.clone(),
        score=state.score.clone(),
        nonfinite=nonfinite,
        executor=executor,
        executor_why=why,
        output_noise=_noise(state),
    )


def _noise(state: State) -> Tensor:
    """[B] float32: the noise that the rule found in the network's outputs."""
    if "defect" in criteria.of(state.rule.criterion).sums:
        return state.buffers.measures[:, defect.VARIANCE].sqrt().float()
    return torch.zeros_like(state.inputs.threshold)


def warn_of_nonfinite(result: SamplingResult) -> bool:
    """Warns the caller of NaN and Inf, and returns whether; a graph's first wait for the device."""
    if found := bool(result.nonfinite.any()):
        which = result.nonfinite.nonzero()[:, 0].tolist()
        warnings.warn(
            f"the latents of samples {which} hold NaN or Inf (result.nonfinite)",
            RuntimeWarning,
            stacklevel=4,
        )
    return found
