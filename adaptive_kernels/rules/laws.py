"""What the laboratory found to hold for every solver and number of steps (docs/quality.md)."""

import itertools
import math

from ..solvers.table import SolverTable
from .criteria import LONGEST_FILL

# Under `defect`: threshold = FACTOR * E ** POWER, with E the solver's own error,
# `SolverTable.error`. Skipping then costs at most half a decibel of the full run's distance to the
# limit with 20 to 50 steps.
FACTOR, POWER = 0.35, 1.5
# But no less: below, an accurate solver pays with most of its calls for what nobody sees (with 100
# steps the shipped model stands at 45 to 50 dB to the limit, and loses up to 2.3).
LEAST = 0.0005
# Where no such error is known, as of solvers that add noise.
USUAL = 0.0016
# Under `defect` with many steps: (network calls, threshold), on the shipped model the means of its
# solvers; between them the logarithms are interpolated.
CALLS = ((11.5, 0.0068), (15.5, 0.0038), (19.5, 0.0016), (28.0, 0.00071), (47.0, 0.0003))
LEAST_CALLS, MOST_CALLS = 11, 50
# Up to so many calls so many steps: as many as the fill spans, and divisors of the 1,000 timesteps
# that networks are trained on (DDIM rounds others, at up to 4 dB).
STEPS = ((13, 100), (22, 200), (MOST_CALLS, 250))
# Whole steps that always call the network where a run needs two outputs, and a third that measured
# them: under solvers that add noise, and those of two stages.
WARMUP = 3


def threshold_for(table: SolverTable) -> float:
    """The threshold of `defect` that goes with a solver's own error, as ``threshold="auto"``."""
    return USUAL if table.error is None else max(LEAST, FACTOR * table.error**POWER)


def warmup_for(table: SolverTable) -> int:
    """Whole steps before the first decision of `defect`."""
    return WARMUP if table.stages > 1 or table.adds_noise else 1


def settings_for(calls: float) -> dict:
    """The settings of `defect` that come to about so many network calls, of many steps."""
    points = [(math.log(number), math.log(threshold)) for number, threshold in CALLS]
    at = math.log(calls)
    pairs = list(itertools.pairwise(points))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if at <= pair[1][0]), pairs[-1])
    return {
        "num_inference_steps": next(steps for most, steps in STEPS if calls <= most),
        "max_skip": LONGEST_FILL,
        "threshold": math.exp(y0 + (at - x0) * (y1 - y0) / (x1 - x0)),
    }
