"""The setting that meets a target, bisected: more calls and more quality to the right."""

from collections.abc import Sequence

from .trials import Plans, Thresholds

EVALUATIONS = 12
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
    for other in curve or ():
        plans.point(plans.setting(other))
    if calls is not None:
        setting = plans.setting(calls)
        for other in (0.75 * setting, 1.3 * setting) if curve is None else ():
            plans.point(min(max(low, round(other)), high))
        plans.point(setting)
        return setting
    _refuse_beyond("quality_db", plans.point(high)["psnr_db"], quality_db, 0.0)
    for _ in range(EVALUATIONS):
        middle = (low + high) // 2
        if middle in (low, high) and middle in plans.points:
            break
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
        for _ in range(EVALUATIONS):
            middle = (low + high) / 2
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
    for _ in range(EVALUATIONS):
        middle = (low + high) / 2
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


def _refuse_beyond(name: str, most: float, target: float, near: float) -> None:
    if most < target - near:
        raise ValueError(
            f"{name} must be within reach of the criterion, at most {most:.1f} here, got {target:g}"
        )


def _fewest_calls(points: dict, quality_db: float):
    enough = [setting for setting in points if points[setting]["psnr_db"] >= quality_db]
    return min(enough, key=lambda setting: (points[setting]["nfe"], -points[setting]["psnr_db"]))
