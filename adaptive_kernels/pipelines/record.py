"""What a generation did, and why it did not do more."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..rules.config import AdaptiveConfig
from ..sampling.skipping import Calls, reason, wants_skips, why_so_few
from ..solvers.table import SolverTable


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
    table: SolverTable | None  # None: the scheduler steps itself
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

    def calls(self) -> Calls:
        """Of the rows done; samples share them."""
        return Calls(len(self.fresh), sum(self.fresh), self.score())

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

    def few_skips(self) -> str | None:
        """Why next to nothing was skipped in the last sampling, where something was."""
        if not self.skipped or not self.samplings or self.seconds is None:
            return None
        sampling = self.samplings[-1]
        if sampling.table is None or not wants_skips(sampling.config):
            return None
        return why_so_few(sampling.config, sampling.table, sampling.calls())

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
        if not full.max_skip:
            return "max_skip is 0"
        if not full.threshold:
            return "threshold is 0, and no prediction is without error"
        if sampling.table is not None:
            return reason(sampling.config, sampling.table, sampling.calls())
        return (
            f"the threshold of {full.threshold:g} was met at no step, and the first "
            f"{full.warmup * sampling.stages} always call the network; more steps or a larger "
            "threshold skip more"
        )
