"""Why next to nothing was skipped, and what to use: told where somebody wanted calls skipped."""

import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..rules.config import AdaptiveConfig
from ..rules.criteria import AUTO
from ..solvers.table import SolverTable

# A smaller share of a full run's calls is next to nothing.
FEW = 0.1
# Steps up to which a solver is too far from one to the next (docs/schedulers.md).
FEW_STEPS = 10
ADAPTIVE = ("third_order", "released", "defect")


class FewSkipsWarning(RuntimeWarning):
    """Next to nothing was skipped."""


def wants_skips(config: AdaptiveConfig, threshold: Any = None) -> bool:
    """Whether a rule is to skip what it can: not one that was told to call, or how often to.

    threshold: a number or [B], in place of the config's.
    """
    if config.criterion not in ADAPTIVE or not config.max_skip:
        return False
    used = config.threshold if threshold is None else threshold
    return bool((used > 0).any()) if isinstance(used, Tensor) else used in (None, AUTO) or used > 0


@dataclass
class Calls:
    """What samples came to that were to skip: sums over them, and the scores of some."""

    rows: int = 0  # network calls of full runs
    made: int = 0
    score: Tensor | None = None  # of any shape, NaN where nothing was asked

    @classmethod
    def of(cls, refreshed: Tensor, nfe: Tensor, score: Tensor, nonfinite: Tensor) -> "Calls":
        """Of B samples: [T, B], [B], [T, B] and [B]; those that hold NaN could skip nothing."""
        whole = ~nonfinite
        return cls(int(whole.sum()) * len(refreshed), int(nfe[whole].sum()), score[:, whole])

    def median(self) -> float | None:
        """Of the scores; None where none was asked."""
        asked = None if self.score is None else self.score[self.score.isfinite()]
        return None if asked is None or not len(asked) else float(asked.median())


def may_be_few(nfe: Tensor, table: SolverTable) -> bool:
    """Whether whole samples may have skipped next to nothing, at a glance: all of them together."""
    return int(nfe.sum()) >= (1 - FEW) * (table.num_steps * len(nfe))


def why_so_few(config: AdaptiveConfig, table: SolverTable, calls: Calls) -> str | None:
    """Why samples skipped next to nothing, and what to use; None where they skipped more."""
    if not calls.rows or calls.made < (1 - FEW) * calls.rows:
        return None
    said = f"{calls.rows - calls.made} of {calls.rows} network calls were skipped"
    if calls.made == calls.rows:
        said = f"none of {calls.rows} network calls was skipped"
    return f"{said}: {reason(config, table, calls)}"


def reason(config: AdaptiveConfig, table: SolverTable, calls: Calls) -> str:
    """Why samples skipped little, and what to use."""
    if table.adds_noise:
        return (
            f"{table.name} adds noise at its steps, which no prediction foresees. Most schedulers "
            "have a deterministic kin that skips more (eta=0, no ancestral or SDE kind); else a "
            "plain run with fewer steps may be the better saving. Networks distilled to few steps "
            "have nothing to skip"
        )
    least = config.resolved(table).warmup * table.stages
    if table.num_steps <= least:
        return f"the first {least} always call the network; more steps skip more"
    # Image to image runs some of the steps, which stand as near to each other as all of them.
    steps = (table.begin + table.num_steps) // table.stages
    if steps <= FEW_STEPS:
        return (
            f"{steps} steps stand too far from each other. Networks distilled to few steps have "
            "nothing to skip; others come closer with many steps and few calls, "
            "AdaptiveConfig.recommended(calls=11) and its 100 steps"
        )
    median = calls.median()
    if median is None:
        return f"no decision could be taken in {table.num_steps} steps"
    if median < 1:
        return (
            f"most steps were within the threshold, but max_skip is {config.max_skip}, and the "
            f"first {least} of {table.num_steps} always call the network"
        )
    return (
        f"the steps' scores were {median:.3g} times the threshold, in the median. A larger "
        "threshold skips more; adaptive_kernels.calibrate(calls=) finds the one that meets a "
        "number of calls"
    )


def warn_of_few_skips(config: AdaptiveConfig, table: SolverTable, calls: Calls, level: int) -> bool:
    """Warns of samples that skipped next to nothing; returns whether it did.

    level: of the caller to be shown, as `warnings.warn` counts them from here.
    """
    why = why_so_few(config, table, calls)
    if why is not None:
        warnings.warn(why, FewSkipsWarning, stacklevel=level + 1)
    return why is not None
