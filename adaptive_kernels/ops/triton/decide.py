"""The decision after a step, in Triton: what csrc/op/progress.h and csrc/core/decide.h say.

Device functions of `step`. All of them run in the program that is the last of its sample to
arrive, or of the batch where it decides together.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .. import reference

SCALARS = tl.constexpr(reference.SCALARS)
NEVER = tl.constexpr(reference.NEVER)
THIRD_ORDER = tl.constexpr(reference.THIRD_ORDER)
RELEASED = tl.constexpr(reference.RELEASED)
DEFECT = tl.constexpr(reference.DEFECT)
PLAN = tl.constexpr(reference.PLAN)

HEAD = tl.constexpr(16)  # float64 of a sample's workspace before its partial sums
CHUNK = tl.constexpr(256)  # partial sums added at a time


class Args(NamedTuple):
    """The tensors of `ops.step` as pointers, and the sizes and limits known at the launch alone."""

    latents: Any
    history: Any
    model_input: Any
    timestep: Any
    progress: Any
    norms: Any
    refreshed: Any
    score: Any
    outputs: Any
    workspace: Any
    model_output: Any
    guidance_scale: Any
    threshold: Any
    rows: Any
    weights: Any
    run_cost: Any
    seed: Any
    noise: Any
    R: Any
    B: Any
    N: Any
    T: Any
    G: Any
    Q: Any
    pieces: Any  # programs of a sample
    stride: Any  # float64 of a sample's workspace
    max_skip: Any
    warmup: Any


class Place(NamedTuple):
    """Where sample b stands; int64."""

    b: Any
    index: Any
    run: Any
    nfe: Any
    newest: Any
    before: Any


class Sums(NamedTuple):
    """`Sums` of csrc/core/decide.h; float64."""

    third: Any
    first: Any
    first_1: Any
    first_2: Any
    elements: Any
    defect: Any


@triton.jit
def place(a, b):
    at = a.progress + b
    index, run, nfe = tl.load(at), tl.load(at + a.B), tl.load(at + 2 * a.B)
    newest, before = tl.load(at + 3 * a.B).to(tl.int64), tl.load(at + 4 * a.B).to(tl.int64)
    return Place(b, index.to(tl.int64), run.to(tl.int64), nfe.to(tl.int64), newest, before)


@triton.jit
def moves(a, at, fresh):
    """Whether a sample takes this step; false too where its counters cannot be a sampling's."""
    possible = (at.index >= 0) & (at.run >= 0) & (at.nfe >= 0) & (at.before >= 0)
    possible = possible & (at.before <= at.newest) & (at.newest <= at.index)
    return possible & (at.index < a.T) & ((at.run > 0) | (fresh != 0))


@triton.jit
def distance(steps, size):
    return tl.maximum(tl.minimum(steps, size), 1) - 1


@triton.jit
def weights_at(a, at):
    """Pointer to the seven weights of a sample's step."""
    gap, previous = distance(at.index - at.newest, a.G), distance(at.newest - at.before, a.G)
    return a.weights + ((at.index * a.G + gap) * a.G + previous) * 7


@triton.jit
def add_up(partial, pieces):
    """The partial sums of a sample, in an order that only their number decides."""
    lane = tl.arange(0, CHUNK)
    total = tl.sum(tl.load(partial + lane, mask=lane < pieces, other=0.0), 0)
    start = CHUNK + tl.cast(0, tl.int32)
    while start < pieces:
        some = tl.load(partial + start + lane, mask=start + lane < pieces, other=0.0)
        total += tl.sum(some, 0)
        start += CHUNK
    return total


@triton.jit
def sums_of(a, b, CRITERION: tl.constexpr):
    """The sums of one sample; those that the criterion does not need are 0."""
    partial = a.workspace + b * a.stride + HEAD
    third, first, defect = tl.cast(0, tl.float64), tl.cast(0, tl.float64), tl.cast(0, tl.float64)
    if CRITERION == THIRD_ORDER:
        third = add_up(partial, a.pieces)
    if (CRITERION == THIRD_ORDER) | (CRITERION == RELEASED):
        first = add_up(partial + a.pieces, a.pieces)
    if CRITERION == DEFECT:
        defect = add_up(partial + 2 * a.pieces, a.pieces)
    norms = a.norms + 2 * b
    return Sums(third, first, tl.load(norms), tl.load(norms + 1), tl.cast(a.N, tl.float64), defect)


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
        decisions = following - 4
        guarded = (decisions >= 5) & (skipped >= tl.minimum(decisions, a.max_skip))
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
    norm_0, norm_1 = tl.load(a.norms + 2 * at.b), tl.load(a.norms + 2 * at.b + 1)
    if CRITERION == DEFECT:
        spread = tl.load(weights_at(a, at) + 6)
        measured = tl.sqrt(sums.defect / sums.elements) * spread
        norm_0 = tl.where(fresh & boundary, measured, norm_0)
    if (CRITERION == THIRD_ORDER) | (CRITERION == RELEASED):
        norm_1 = tl.where(boundary, norm_0, norm_1)
        norm_0 = tl.where(boundary, first, norm_0)
    before, newest = tl.where(fresh, at.newest, at.before), tl.where(fresh, at.index, at.newest)
    run, index = at.run + 1, at.index + 1
    going_on = index < a.T

    predicted = tl.cast(0, tl.float64)
    if CRITERION == PLAN:
        predicted = tl.load(a.run_cost + index * a.G * a.Q, mask=going_on, other=0.0)
    if CRITERION == DEFECT:
        skips = distance((run - 1) // STAGES + 1, a.Q)
        entry = (newest * a.G + distance(newest - before, a.G)) * a.Q + skips
        predicted = norm_0 * tl.load(a.run_cost + entry)
    threshold = tl.load(a.threshold + at.b).to(tl.float64)
    timestep = tl.load(a.rows + at.index * (SCALARS + K) + 5)
    refresh, score = decide(
        a, at.index, run, sums, predicted.to(tl.float64), threshold, CRITERION, STAGES
    )

    # Every thread has read what is written now.
    tl.debug_barrier()
    tl.store(a.refreshed + at.index * a.B + at.b, fresh, mask=fresh)
    tl.store(a.refreshed + index * a.B + at.b, refresh, mask=going_on)
    tl.store(a.score + index * a.B + at.b, score, mask=going_on)
    to = a.progress + at.b
    tl.store(to, index.to(tl.int32))
    tl.store(to + a.B, tl.where(going_on & ~refresh, run, 0).to(tl.int32))
    tl.store(to + 2 * a.B, (at.nfe + fresh).to(tl.int32))
    tl.store(to + 3 * a.B, newest.to(tl.int32))
    tl.store(to + 4 * a.B, before.to(tl.int32))
    tl.store(a.norms + 2 * at.b, norm_0)
    tl.store(a.norms + 2 * at.b + 1, norm_1)
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
