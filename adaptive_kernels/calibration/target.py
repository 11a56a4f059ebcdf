"""The setting that meets a target, bisected: more calls and more quality to the right."""

from collections.abc import Sequence

from ..solvers.table import SolverTable
from .trials import Plans, Thresholds, plan_cost

EVALUATIONS = 12
# A plan's curve, times the number of calls asked for.
AROUND = (0.75, 1.3)
# Calls per stage by which a criterion may miss its target; twice that where its calls jump, as
# those of a batch that decides as one do.
NEAR = 0.5


def plan_setting(
    plans: Plans, calls: float | None, quality_db: float | None, curve: Sequence[int] | None
) -> int:
    """The number of whole steps of the plan that meets the target; those of `curve` are tried too.

    Raises: ValueError where even a plan that calls at every step misses `quality_db`.
    """
    low, high = plans.range()
    others = [plans.setting(other) for other in curve or ()]
    if calls is not None:
        setting = plans.setting(calls)
        if curve is None:
            others = [min(max(low, round(by * setting)), high) for by in AROUND]
        _try_all(plans, [*others, setting])
        return setting
    _try_all(plans, [*others, high])
    _refuse_beyond("quality_db", plans.points[high]["psnr_db"], quality_db, 0.0)
    for _ in range(EVALUATIONS):
        middle = (low + high) // 2
        if middle in (low, high) and middle in plans.points:
            break
        plans.expect([middle] + [(low + middle) // 2] * (high - low).bit_length())
        short = plans.point(middle)["psnr_db"] < quality_db
        low, high = (middle, high) if short else (low, middle)
    return _fewest_calls(plans.points, quality_db)


def threshold_setting(
    thresholds: Thresholds, calls: float | None, quality_db: float | None
) -> float:
    """The setting of a criterion's threshold that meets the target.

    Raises: ValueError where no threshold does.
    """
    low, high = thresholds.range()
    if calls is None:
        best = max(thresholds.point(end)["psnr_db"] for end in (low, high))
        _refuse_beyond("quality_db", best, quality_db, 0.0)
        for k in range(EVALUATIONS):
            middle = (low + high) / 2
            thresholds.expect(EVALUATIONS - k, thresholds.point(high)["nfe"])
            short = thresholds.point(middle)["psnr_db"] < quality_db
            low, high = (middle, high) if short else (low, middle)
        return _fewest_calls(thresholds.points, quality_db)
    near = NEAR * thresholds.bench.table.stages
    ends = [thresholds.point(end)["nfe"] for end in (low, high)]
    _refuse_beyond("calls", max(ends), calls, near)
    if min(ends) > calls + near:
        raise ValueError(
            f"calls must be within reach of the criterion, at least {min(ends):.1f} with this "
            f"max_skip and warmup, got {calls:g}"
        )
    for k in range(EVALUATIONS):
        middle = (low + high) / 2
        thresholds.expect(EVALUATIONS - k, calls)
        nfe = thresholds.point(middle)["nfe"]
        if abs(nfe - calls) <= 0.05:
            break
        low, high = (middle, high) if nfe < calls else (low, middle)
    points = thresholds.points
    nearest = min(points, key=lambda setting: abs(points[setting]["nfe"] - calls))
    if abs(points[nearest]["nfe"] - calls) > 2 * near:
        below, above = (points[setting]["nfe"] for setting in (low, high))
        raise ValueError(
            f"calls must be within reach of the criterion, which goes from {below:.1f} to "
            f"{above:.1f} at once here, got {calls:g}"
        )
    return nearest


def search_calls(
    table: SolverTable,
    criterion: str,
    calls: float | None,
    curve: Sequence[int] | None,
    trials: int,
) -> float:
    """Network calls that the search is expected to make, before anything is known."""
    target = table.num_steps / 2 if calls is None else calls
    if criterion != "plan":
        return table.num_steps + EVALUATIONS * target
    others = [by * target for by in AROUND] if curve is None else curve
    # The network's response costs about a full run.
    return table.num_steps + sum(plan_cost(c, trials) for c in (*others, target))


def _try_all(plans: Plans, settings: Sequence[int]) -> None:
    for k, setting in enumerate(settings):
        plans.expect(settings[k:])
        plans.point(setting)


def _refuse_beyond(name: str, most: float, target: float, near: float) -> None:
    if most < target - near:
        raise ValueError(
            f"{name} must be within reach of the criterion, at most {most:.1f} here, got {target:g}"
        )


def _fewest_calls(points: dict, quality_db: float):
    enough = [setting for setting in points if points[setting]["psnr_db"] >= quality_db]
    return min(enough, key=lambda setting: (points[setting]["nfe"], -points[setting]["psnr_db"]))
