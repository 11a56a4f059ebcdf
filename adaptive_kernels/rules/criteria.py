"""What is to be known of each criterion, once; csrc/core/decide.h says the same to the kernels.

A new criterion is an entry here, its comparison in csrc/core/decide.h, in the Triton `decide` and
in the reference, and its name in the tests' list (docs/adding-a-rule.md).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

LARGEST = 2**31 - 1
# Codes as in csrc/core/decide.h.
NEVER, EVERY, THIRD_ORDER, RELEASED, DEFECT, PLAN = range(6)
# The guard of `released` is idle for so many decisions; it takes four calls before the first one.
IDLE, FORCED = 5, 4
# The most skipped steps of a fill that has tables, which grow with the square of this.
LONGEST_FILL = 15
# The threshold that follows from the solver's table (module `laws`).
AUTO = "auto"


class Rule(NamedTuple):
    """The integers an op is given; the fields of `Rule` in csrc/core/decide.h."""

    criterion: int
    max_skip: int
    warmup: int
    stages: int
    batch_wide: bool = False


def _longest(max_skip: int, whole: int, skipped: int) -> bool:
    return skipped >= max_skip


def _late(max_skip: int, whole: int, skipped: int) -> bool:
    decisions = whole - FORCED
    return decisions >= IDLE and skipped >= min(max_skip, decisions)


@dataclass(frozen=True)
class Criterion:
    """One of the criteria.

    code: in csrc/core/decide.h. warmup: whole steps before its first possible decision. threshold:
    the default, AUTO where the solver says it, None where it compares with none. sums: what it
    needs of a step, of "third", "first" (differences of the latents; first ones in squares beside
    third ones, else in absolute value) and "defect" (of the fill). needs_table: whether it looks
    something up. fill: the one that belongs to it. least_skip: the least max_skip it can do with.
    guard: (max_skip, whole step, skipped before it) -> whether the network is called whatever was
    measured. most: max_skip -> whole steps that it may skip in a row.
    """

    code: int
    warmup: int = 1
    threshold: float | str | None = None
    sums: frozenset[str] = frozenset()
    needs_table: bool = False
    fill: str = "reuse"
    least_skip: int = 0
    guard: Callable[[int, int, int], bool] = _longest
    most: Callable[[int], int] = lambda max_skip: max_skip


# The first decision needs four latents (third_order), or three differences of computed ones after
# the authors' four calls (released). The threshold of third_order was chosen on the shipped model
# (docs/quality.md), as was the law of defect's; that of released is the authors'.
CRITERIA = {
    "never": Criterion(NEVER, guard=lambda *_: True, most=lambda max_skip: 0),
    "every": Criterion(EVERY),
    "third_order": Criterion(
        THIRD_ORDER, warmup=3, threshold=0.1, sums=frozenset({"third", "first"})
    ),
    "released": Criterion(
        RELEASED,
        warmup=FORCED,
        threshold=0.01,
        sums=frozenset({"first"}),
        least_skip=1,
        guard=_late,
        most=lambda max_skip: max(max_skip, IDLE),
    ),
    "defect": Criterion(
        DEFECT,
        threshold=AUTO,
        sums=frozenset({"defect"}),
        needs_table=True,
        fill="linear",
    ),
    # Its table decides; max_skip is at least the longest run of skipped steps.
    "plan": Criterion(PLAN, needs_table=True, fill="fitted", guard=lambda *_: False),
}
NAME = {criterion.code: name for name, criterion in CRITERIA.items()}


def of(code: int) -> Criterion:
    """The criterion of a code."""
    return CRITERIA[NAME[code]]


def parse(text: object) -> tuple[str, int]:
    """(name, period) of what a user wrote: 'third_order' or 'every(3)'; the period of others is 0.

    Raises: ValueError.
    """
    if isinstance(text, str):
        if text in CRITERIA and text != "every":
            return text, 0
        match = re.fullmatch(r"every\((\d+)\)", text)
        if match and 1 <= int(match[1]) <= LARGEST:
            return "every", int(match[1])
    names = [name for name in CRITERIA if name not in ("never", "every")] + ["never"]
    raise ValueError(
        f"criterion must be {', '.join(map(repr, names))} or 'every(k)' with k >= 1, got {text!r}"
    )


def forced(rule: Rule, whole: int, skipped: int) -> bool:
    """Whether the network is called for whole step `whole`, whatever was measured.

    skipped: whole steps skipped in a row before it. Under `plan` the table says the rest.
    """
    return whole < rule.warmup or of(rule.criterion).guard(rule.max_skip, whole, skipped)


def longest_run(rule: Rule, steps: int) -> int:
    """Rows a sample can take on one network output, refresh included; as csrc/core/decide.h."""
    skips = min(of(rule.criterion).most(rule.max_skip), steps)
    return min((skips + 1) * rule.stages, steps)
