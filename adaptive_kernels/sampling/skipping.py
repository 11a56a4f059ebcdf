"""Why next to nothing was skipped, and what to use: told where somebody wanted calls skipped."""

import math
import warnings
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


def why_so_few(
    config: AdaptiveConfig, table: SolverTable, calls: float, score: float | None
) -> str | None:
    """Why a sampling skipped next to nothing, and what to use; None where it skipped more.

    Args:
        calls: network calls, mean over samples. score: the smallest of the run, in units of the
            threshold; None: no decision was taken.
    """
    rows = table.num_steps
    if calls < (1 - FEW) * rows:
        return None
    least = config.resolved(table).warmup * table.stages
    skipped = f"{rows - calls:.3g} of {rows} network calls were skipped" if calls < rows else None
    said = skipped or f"no network call of {rows} was skipped"
    steps = rows // table.stages
    if table.adds_noise:
        return (
            f"{said}: {table.name} adds noise at its steps, which no prediction foresees. Most "
            "schedulers have a deterministic kin that skips more (eta=0, no ancestral or SDE "
            "kind); else a plain run with fewer steps may be the better saving. Networks distilled "
            "to few steps have nothing to skip"
        )
    if rows <= least:
        return f"{said}: the first {least} always call the network; more steps skip more"
    if steps <= FEW_STEPS:
        return (
            f"{said}: {steps} steps stand too far from each other. Networks distilled to few steps "
            "have nothing to skip; others come closer with many steps and few calls, "
            "AdaptiveConfig.recommended(calls=11) and its 100 steps"
        )
    why = "no decision could be taken"
    if score is not None and math.isfinite(score):
        why = f"the smallest score was {score:.3g} times the threshold"
    return (
        f"{said}: {why}. A larger threshold skips more; adaptive_kernels.calibrate(calls=) finds "
        "the one that meets a number of calls"
    )


def smallest(score: Tensor) -> float | None:
    """The smallest number of a score, [T, B]; None where no decision was taken."""
    taken = score[score.isfinite()]
    return float(taken.min()) if len(taken) else None


def warn_of_few_skips(
    config: AdaptiveConfig, table: SolverTable, calls: float, score: float | None, level: int
) -> bool:
    """Warns of a sampling that skipped next to nothing; returns whether it did.

    level: of the caller to be shown, as `warnings.warn` counts them from here.
    """
    why = why_so_few(config, table, calls, score)
    if why is not None:
        warnings.warn(why, FewSkipsWarning, stacklevel=level + 1)
    return why is not None
