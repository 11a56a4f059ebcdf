"""From budgets to settings: the knob of a method turned until its mean NFE meets each of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

# Of the grid that all budgets share, and at most so many more for each budget.
POINTS = 6
EVALUATIONS = 6


def tune(
    nfe_of: Callable[[float], float], knob: tuple[float, float], budgets: Sequence[float]
) -> dict[float, float]:
    """For each budget the setting whose mean NFE comes closest, of those evaluated.

    A logarithmic grid over the knob is evaluated once, from its cheap end until the largest budget
    is passed; then, between the two known settings whose NFE lie around a budget, one at a time
    by interpolation, until the NFE is within `tolerance` of the budget or EVALUATIONS are spent.
    A budget beyond both ends gets the nearer end, and of several settings there the smallest.

    Args:
        nfe_of: mean NFE at a setting, in network calls per sample; falls as the setting grows.
        knob: (least, most) setting, 0 < least < most.
        budgets: network calls per sample.

    Returns:
        budget -> setting, rounded to six significant digits.

    Raises:
        ValueError: knob or budgets, by name.
    """
    least, most = knob
    if not 0 < least < most < math.inf:
        raise ValueError(f"knob must be (least, most) with 0 < least < most, got {knob}")
    if not budgets or min(budgets) <= 0:
        raise ValueError(f"budgets must be given and positive, got {list(budgets)}")
    known: dict[float, float] = {}

    def evaluate(decade: float) -> None:
        setting = float(f"{10**decade:.6g}")
        if setting not in known:
            known[setting] = nfe_of(setting)

    low, high = math.log10(least), math.log10(most)
    for i in range(POINTS):
        if not known or max(known.values()) <= max(budgets):
            evaluate(high - (high - low) * i / (POINTS - 1))
    for budget in budgets:
        for _ in range(EVALUATIONS):
            bracket = _bracket(known, budget)
            if abs(known[_closest(known, budget)] - budget) <= tolerance(budget) or not bracket:
                break
            a, b = bracket
            # Calls fall about like a power of the setting.
            share = math.log(known[a] / budget) / math.log(known[a] / known[b])
            # Off the ends: an NFE that jumps would hold an interpolation at one of them.
            share = min(max(share, 0.1), 0.9)
            evaluate(math.log10(a) + share * math.log10(b / a))
    return {budget: _closest(known, budget) for budget in budgets}


def tolerance(budget: float) -> float:
    """How far a mean NFE may be from its budget, in calls."""
    return max(0.3, 0.02 * budget)


def _closest(known: dict[float, float], budget: float) -> float:
    fewest = min(known.values())
    if budget <= fewest:
        # Further up the knob a rule that cannot call less often only gets worse.
        return min(s for s in known if known[s] <= fewest + tolerance(fewest))
    return min(known, key=lambda setting: (abs(known[setting] - budget), setting))


def _bracket(known: dict[float, float], budget: float) -> tuple[float, float] | None:
    """The closest neighbours among the known settings with one NFE above and one below."""
    around = [
        (a, b)
        for a, b in itertools.pairwise(sorted(known))
        if (known[a] - budget) * (known[b] - budget) < 0
    ]
    return min(around, key=lambda pair: pair[1] / pair[0], default=None)
