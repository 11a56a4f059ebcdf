"""How the programs of a sample come to its sums, in Triton: their shares, and a ticket."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...rules import criteria
from .. import fields

MEASURES = tl.constexpr(fields.MEASURES)


def _those(needed: str) -> tl.constexpr:
    """A bit for each criterion that needs the sum: `(FIRST >> CRITERION) & 1`."""
    return tl.constexpr(
        sum(1 << one.code for one in criteria.CRITERIA.values() if needed in one.sums)
    )


FIRST, THIRD, MEASURED = _those("first"), _those("third"), _those("defect")

HEAD = tl.constexpr(16)  # float64 of a sample's workspace before its partial sums
CHUNK = tl.constexpr(256)  # partial sums added at a time


class Sums(NamedTuple):
    """`Sums` of csrc/core/decide.h; float64."""

    third: Any
    first: Any
    first_1: Any
    first_2: Any
    elements: Any
    defect: Any


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
    if (THIRD >> CRITERION) & 1:
        third = add_up(partial, a.pieces)
    if (FIRST >> CRITERION) & 1:
        first = add_up(partial + a.pieces, a.pieces)
    if (MEASURED >> CRITERION) & 1:
        defect = add_up(partial + 2 * a.pieces, a.pieces)
    measures = a.measures + MEASURES * b
    return Sums(
        third, first, tl.load(measures), tl.load(measures + 1), tl.cast(a.N, tl.float64), defect
    )


@triton.jit
def leave(a, at, piece, kind: tl.constexpr, terms, where):
    """Leaves this program's share of a sum for the last program of the sample."""
    share = tl.sum(tl.where(where, terms, 0.0).to(tl.float64), 0)
    tl.store(a.workspace + at.b * a.stride + HEAD + kind * a.pieces + piece, share)


@triton.jit
def arrive(a, b, programs):
    """Whether this program is the last of `programs`; leaves the counter of sample b at zero."""
    counter = tl.cast(a.workspace + b * a.stride, tl.pointer_type(tl.int32))
    # Every thread of the program has read and written what is its own.
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1
    tl.store(counter, 0, mask=last)
    return last
