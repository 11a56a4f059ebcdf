"""Where a sample stands, in Triton: what csrc/op/place.h looks up for it."""

import collections
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .. import fields

SCALARS, WEIGHTS = tl.constexpr(fields.SCALARS), tl.constexpr(fields.WEIGHTS)

# The tensors of the ops as pointers, and the sizes and limits known at the launch alone; `pieces`
# are programs of a sample, `stride` float64 of a sample's workspace.
Args = collections.namedtuple(
    "Args",
    [*fields.NAMES, *("R", "B", "N", "T", "G", "Q", "pieces", "stride"), *("max_skip", "warmup")],
)


class Place(NamedTuple):
    """Where sample b stands; int64."""

    b: Any
    index: Any
    run: Any
    nfe: Any
    last_call: Any
    call_before: Any


@triton.jit
def place(a, b):
    at = a.progress + b
    index, run, nfe = tl.load(at), tl.load(at + a.B), tl.load(at + 2 * a.B)
    last_call, call_before = tl.load(at + 3 * a.B), tl.load(at + 4 * a.B)
    return Place(
        b,
        index.to(tl.int64),
        run.to(tl.int64),
        nfe.to(tl.int64),
        last_call.to(tl.int64),
        call_before.to(tl.int64),
    )


@triton.jit
def moves(a, at, fresh):
    """Whether a sample takes this step; false too where its counters cannot be a sampling's."""
    possible = (at.index >= 0) & (at.run >= 0) & (at.nfe >= 0) & (at.call_before >= 0)
    possible = possible & (at.call_before <= at.last_call) & (at.last_call <= at.index)
    return possible & (at.index < a.T) & ((at.run > 0) | (fresh != 0))


@triton.jit
def distance(steps, size):
    return tl.maximum(tl.minimum(steps, size), 1) - 1


@triton.jit
def weights_at(a, at):
    """Pointer to the weights of a sample's step."""
    gap, previous = (
        distance(at.index - at.last_call, a.G),
        distance(at.last_call - at.call_before, a.G),
    )
    return a.weights + ((at.index * a.G + gap) * a.G + previous) * WEIGHTS
