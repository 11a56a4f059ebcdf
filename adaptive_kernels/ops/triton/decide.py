"""The decision after a step, in Triton: what csrc/op/progress.h and csrc/core/decide.h say.

Device functions of `step`. All of them run in the program that is the last of its sample to
arrive, or of the batch where it decides together.
"""

import triton
import triton.language as tl

from ...rules import criteria
from .. import fields
from .defect import (
    Measures,
    entry_at,
    keep_noise,
    measure,
    measures_at,
    predict,
    share_of,
    store_measures,
)
from .place import SCALARS, Place, distance, moves, place, weights_at
from .sums import FIRST, MEASURED, MEASURES, Sums, sums_of

PREDICTORS = tl.constexpr(fields.PREDICTORS)
NEVER = tl.constexpr(criteria.NEVER)
THIRD_ORDER = tl.constexpr(criteria.THIRD_ORDER)
RELEASED = tl.constexpr(criteria.RELEASED)
DEFECT = tl.constexpr(criteria.DEFECT)
PLAN = tl.constexpr(criteria.PLAN)
IDLE, FORCED = tl.constexpr(criteria.IDLE), tl.constexpr(criteria.FORCED)


@triton.jit
def foreseen(
    a, index, run, last_call, call_before, own, CRITERION: tl.constexpr, STAGES: tl.constexpr
):
    """What the criterion looks up for row `index`, `run` rows on the output of row `last_call`.

    Of a plan, zero where the network is not called; of `defect`, from what it has measured of the
    sample (`own`), the error if another step is skipped.
    """
    predicted = tl.cast(0, tl.float64)
    if CRITERION == PLAN:
        asked = a.rule_table + index * a.G * a.Q * PREDICTORS
        predicted = tl.load(asked, mask=index < a.T, other=0.0).to(tl.float64)
    if CRITERION == DEFECT:
        skips = distance((run - 1) // STAGES + 1, a.Q)
        entry = (last_call * a.G + distance(last_call - call_before, a.G)) * a.Q + skips
        predicted = predict(own, a.rule_table + entry * PREDICTORS)
    return predicted


@triton.jit
def decide(a, step, run, sums, predicted, threshold, CRITERION: tl.constexpr, STAGES: tl.constexpr):
    """(refresh, score) after row `step`, `run` rows on the current output; NaN refreshes."""
    following, skipped = (step + 1) // STAGES, (run - 1) // STAGES
    boundary = (step + 1) % STAGES == 0
    left, right = tl.cast(float("nan"), tl.float64), tl.cast(float("nan"), tl.float64)
    refresh = skipped >= a.max_skip
    if CRITERION == NEVER:
        refresh = run > 0
    if CRITERION == PLAN:
        refresh = ~(predicted <= 0)
    if CRITERION == THIRD_ORDER:
        left, right = tl.sqrt(sums.third), threshold * tl.sqrt(sums.first_1)
        refresh = refresh | ~(left < right)
    if CRITERION == RELEASED:
        d, d1 = sums.first / sums.elements, sums.first_1 / sums.elements
        d2 = sums.first_2 / sums.elements
        left, right = tl.abs((d + d2) / 2 - d1), threshold * d1
        # The authors' guard: it sees the decisions taken before this one and is idle below five.
        decisions = following - FORCED
        guarded = (decisions >= IDLE) & (skipped >= tl.minimum(decisions, a.max_skip))
        refresh = guarded | ~(left <= right)
    if CRITERION == DEFECT:
        left, right = predicted, threshold
        refresh = refresh | ~(left <= right)
    forced = following < a.warmup
    tie = (left == 0) & (right == 0)
    score = tl.where(tie, 1.0, left / tl.where(tie, 1.0, right)).to(tl.float32)
    refresh = tl.where(boundary, refresh | forced, run == 1)
    return refresh, tl.where(boundary & ~forced, score, float("nan"))


@triton.jit
def conclude(
    a,
    at,
    first,
    sums,
    K: tl.constexpr,
    CRITERION: tl.constexpr,
    STAGES: tl.constexpr,
    GUIDED: tl.constexpr,
):
    """Moves a sample past its step: `first` is its own sum, `sums` those that decide."""
    fresh, boundary = at.run == 0, (at.index + 1) % STAGES == 0
    to_measures = a.measures + MEASURES * at.b
    if (FIRST >> CRITERION) & 1:
        last, before_last = tl.load(to_measures), tl.load(to_measures + 1)
    own = measures_at(to_measures)
    if (MEASURED >> CRITERION) & 1:
        w = entry_at(weights_at(a, at))
        size = tl.load(a.output_noise + at.b).to(tl.float64)
        most = size * size
        if fresh & boundary:
            own = measure(own, w, sums.defect / sums.elements, most)
        if fresh & (most > 0):
            own = keep_noise(own, w)
    call_before = tl.where(fresh, at.last_call, at.call_before)
    last_call = tl.where(fresh, at.index, at.last_call)
    run, index = at.run + 1, at.index + 1
    going_on = index < a.T

    predicted = foreseen(a, index, run, last_call, call_before, own, CRITERION, STAGES)
    threshold = tl.load(a.threshold + at.b).to(tl.float64)
    timestep = tl.load(a.rows + at.index * (SCALARS + K) + 5)
    refresh, score = decide(a, at.index, run, sums, predicted, threshold, CRITERION, STAGES)

    if (MEASURED >> CRITERION) & 1:
        share = tl.where(most > 0, 0.0, own.share)
        if going_on & refresh & (most > 0):
            ahead = Place(at.b, index, at.run * 0, at.nfe, last_call, call_before)
            share = share_of(own, entry_at(weights_at(a, ahead)))
            share = tl.where((index + 1) % STAGES == 0, share, 0.0)
        own = Measures(own.rate, own.variance, own.noise_0, own.noise_1, own.noise_2, share)

    # Every thread has read what is written now.
    tl.debug_barrier()
    tl.store(a.refreshed + at.index * a.B + at.b, fresh, mask=fresh)
    tl.store(a.refreshed + index * a.B + at.b, refresh, mask=going_on)
    tl.store(a.score + index * a.B + at.b, score, mask=going_on)
    to = a.progress + at.b
    tl.store(to, index.to(tl.int32))
    tl.store(to + a.B, tl.where(going_on & ~refresh, run, 0).to(tl.int32))
    tl.store(to + 2 * a.B, (at.nfe + fresh).to(tl.int32))
    tl.store(to + 3 * a.B, last_call.to(tl.int32))
    tl.store(to + 4 * a.B, call_before.to(tl.int32))
    if (MEASURED >> CRITERION) & 1:
        store_measures(to_measures, own)
    if (FIRST >> CRITERION) & 1:
        tl.store(to_measures, tl.where(boundary, first, last))
        tl.store(to_measures + 1, tl.where(boundary, last, before_last))
    value = timestep.to(a.timestep.dtype.element_ty)
    tl.store(a.timestep + at.b, value, mask=going_on)
    if GUIDED:
        tl.store(a.timestep + a.B + at.b, value, mask=going_on)


@triton.jit
def conclude_together(
    a,
    fresh,
    K: tl.constexpr,
    CRITERION: tl.constexpr,
    STAGES: tl.constexpr,
    GUIDED: tl.constexpr,
):
    """One decision of all samples that move, from the sums over them in their order."""
    third, first, defect = tl.cast(0, tl.float64), tl.cast(0, tl.float64), tl.cast(0, tl.float64)
    first_1, first_2, elements = third, third, third
    b = tl.cast(0, tl.int64)
    while b < a.B:
        moving = moves(a, place(a, b), fresh)
        one = sums_of(a, b, CRITERION)
        third += tl.where(moving, one.third, 0.0)
        first += tl.where(moving, one.first, 0.0)
        first_1 += tl.where(moving, one.first_1, 0.0)
        first_2 += tl.where(moving, one.first_2, 0.0)
        elements += tl.where(moving, one.elements, 0.0)
        defect += tl.where(moving, one.defect, 0.0)
        b += 1
    sums = Sums(third, first, first_1, first_2, elements, defect)
    b = tl.cast(0, tl.int64)
    while b < a.B:
        at = place(a, b)
        own = sums_of(a, b, CRITERION).first
        if moves(a, at, fresh):
            conclude(a, at, own, sums, K, CRITERION, STAGES, GUIDED)
        b += 1
