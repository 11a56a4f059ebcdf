"""What a generation did, and why it did not do more."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..rules.config import AdaptiveConfig
from ..rules.laws import WARMUP


@dataclass(eq=False)
class Sampling:
    """One way through a schedule."""

    scheduler: str
    config: AdaptiveConfig  # the rule that was followed
    notes: list[str]  # what was not done as asked, and why
    hints: list[str]  # why little can be gained
    rows: int  # T, of the schedule
    samples: int  # B
    stages: int
    buffers: Any  # solver.fused.Buffers, None once the sampling has ended
    fresh: list[bool] = field(default_factory=list)  # per row done: whether the networks ran
    reads: int = 0  # of the device, for decisions
    _score: Tensor | None = None

    def end(self) -> None:
        """Keeps the scores and lets the latents go."""
        if self.buffers is not None:
            if (self.buffers.state.index.cpu() < len(self.fresh)).any():
                self.notes.append("steps were lost on the device: these latents are wrong")
            self.reads = self.buffers.decision.reader.reads
            self._score = self.buffers.state.score[: len(self.fresh)].cpu()
            self.buffers = None

    def score(self) -> Tensor:
        """[rows done, B] float32 on the CPU: what decided each row; NaN where nothing was asked."""
        return self.buffers.state.score[: len(self.fresh)].cpu() if self.buffers else self._score

    def asked(self) -> list[list[int]] | None:
        """By sample, the rows at which it asked for the networks; None: the rule asks nobody."""
        if self.config.criterion not in ("third_order", "released", "defect"):
            return None
        score = self.score()
        # Equality refreshes under third_order alone.
        over = score >= 1 if self.config.criterion == "third_order" else score > 1
        rows = [column.nonzero()[:, 0].tolist() for column in over.T]
        return [[row for row in asked if self.fresh[row]] for asked in rows]


@dataclass(eq=False)
class Record:
    """One generation: the opening of a progress bar to its closing, mostly one sampling."""

    pipeline: str
    config: AdaptiveConfig
    networks: tuple[str, ...]
    samplings: list[Sampling] = field(default_factory=list)
    made: Counter = field(default_factory=Counter)  # calls by network
    skipped: Counter = field(default_factory=Counter)
    network_seconds: dict[str, float] = field(default_factory=dict)  # in its calls, by network
    began: float = 0.0
    seconds: float | None = None  # of the loop; None: it has not ended
    notes: list[str] = field(default_factory=list)  # what belongs to no sampling

    def nothing_skipped(self) -> str | None:
        """Why no network call was skipped; None where some were, or none was to be."""
        if self.skipped or self.config.criterion == "never" or self.seconds is None:
            return None
        if not self.samplings:
            return "; ".join(self.notes) or "the loop never called scheduler.step"
        if not self.made:
            return (
                f"none of the networks {', '.join(self.networks)} was called in the loop; name "
                "those that are by networks="
            )
        sampling = self.samplings[-1]
        full = sampling.config.resolved()
        least = full.warmup * sampling.stages
        if len(sampling.fresh) <= least:
            return (
                f"{len(sampling.fresh)} steps were done, and the first {least} always call the "
                "network"
            )
        if not full.max_skip:
            return "max_skip is 0"
        if not full.threshold:
            return "threshold is 0, and no prediction is without error"
        scores = [value for value in sampling.score().amax(1).tolist() if math.isfinite(value)]
        if not scores and len(sampling.fresh) <= WARMUP and full.criterion == "defect":
            return (
                f"{len(sampling.fresh)} steps were done, too far from each other for a skip before "
                "the third call"
            )
        if not scores:
            return "no decision was possible: the latents hold NaN or Inf"
        return (
            f"no step was within the threshold of {full.threshold:g}: the smallest score was "
            f"{min(scores):.3g} times it; more steps or a larger threshold skip more"
        )
