"""What one program does about its block of a sample in a step, in Triton: csrc/core/step.h."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .defect import SHARE
from .noise import normal
from .place import SCALARS, weights_at
from .sums import FIRST, MEASURED, MEASURES, THIRD, leave


class Block(NamedTuple):
    """Elements of a sample that one program takes."""

    first: Any  # of the first one, its place in the sample
    at: Any  # [BLOCK] places in [B, N]
    inside: Any  # [BLOCK] whether there is one
    slab: Any  # B N


@triton.jit
def block_of(a, b, piece, BLOCK: tl.constexpr):
    lane, first = tl.arange(0, BLOCK), piece * BLOCK
    return Block(first, b * a.N + first + lane, lane < a.N - first, tl.cast(a.B, tl.int64) * a.N)


@triton.jit
def slot(step, depth):
    """Slot of a step in a ring; remainders of 64 bits are slow."""
    return step.to(tl.int32) % depth


@triton.jit
def row_of(a, step, K: tl.constexpr):
    return a.rows + step * (SCALARS + K)


@triton.jit
def latents_of(a, step, g, where):
    """x of a step, 0 but for the elements `where`."""
    return tl.load(a.latents + g.at + slot(step, a.R) * g.slab, mask=where, other=0.0)


@triton.jit
def output_of(a, b, g, where, GUIDED: tl.constexpr):
    """The model output, guided; 0 but for the elements `where`."""
    m = tl.load(a.model_output + g.at, mask=where, other=0.0).to(tl.float32)
    if GUIDED:
        conditional = tl.load(a.model_output + g.slab + g.at, mask=where, other=0.0)
        m = m + tl.load(a.guidance_scale + b) * (conditional.to(tl.float32) - m)
    return m


@triton.jit
def earlier(a, step, g, K: tl.constexpr):
    """h of the K - 1 steps before, the newest first; 0 of those that there were not."""
    old = ()
    for k in tl.static_range(1, K):
        at_k = slot(step + (K - 1 - k), K - 1) * g.slab
        old += (tl.load(a.history + at_k + g.at, mask=g.inside & (step >= k), other=0.0),)
    return old


@triton.jit
def keep(a, at, g, row, x, m, fresh, CRITERION: tl.constexpr, STAGES: tl.constexpr):
    """With a fill: h, e = u x + w m, and e minus the fill; csrc/cpu/tile_fill.h."""
    boundary = (at.index + 1) % STAGES == 0
    w = weights_at(a, at)
    f0, f1, f2 = tl.load(w), tl.load(w + 1), tl.load(w + 2)
    r0, r1, r2 = tl.load(w + 3), tl.load(w + 4), tl.load(w + 5)
    filled = ~fresh
    if (MEASURED >> CRITERION) & 1:
        filled = filled | boundary
    repairs = fresh & ((r0 != 0) | (r1 != 0) | ((r2 != 0) & (at.nfe > 1)))
    # A weight of 0 leaves its output out, whatever is there.
    has_0 = filled & (at.nfe > 0) & (f0 != 0)
    has_1 = filled & (at.nfe > 1) & (f1 != 0)
    has_2 = filled & (at.nfe > 2) & (f2 != 0)
    need_0, need_1 = has_0 | (repairs & (at.nfe > 0)), has_1 | (repairs & (at.nfe > 1))
    outputs = a.outputs + g.at
    oldest = slot(at.nfe, 3)  # of E_2, where a refresh leaves its own
    e0 = tl.load(outputs + slot(oldest + 2, 3) * g.slab, mask=g.inside & need_0, other=0.0)
    e1 = tl.load(outputs + slot(oldest + 1, 3) * g.slab, mask=g.inside & need_1, other=0.0)
    e2 = tl.load(outputs + oldest * g.slab, mask=g.inside & has_2, other=0.0)
    # -0 changes no sum that it starts.
    fill = tl.where(has_0, f0 * e0, tl.where(has_1, -0.0, 0.0))
    fill = tl.where(has_1, fill + f1 * e1, fill)
    fill = tl.where(has_2, fill + f2 * e2, fill)

    p, q, ps, qs = tl.load(row), tl.load(row + 1), tl.load(row + 8), tl.load(row + 9)
    e = tl.load(row + 6) * x + tl.load(row + 7) * m
    repair = r0 * e + tl.where(at.nfe > 0, r1 * e0, 0.0)
    repair = tl.where(at.nfe > 1, repair + r2 * e1, repair)
    h = p * x + q * m
    h = tl.where(repairs, h + qs * repair, h)
    wrong = e - fill
    if (MEASURED >> CRITERION) & 1:
        share = tl.load(a.measures + MEASURES * at.b + SHARE).to(tl.float32)
        e = tl.where((share != 0) & boundary, e - share * wrong, e)
    return tl.where(fresh, h, ps * x + qs * fill), e, wrong


@triton.jit
def solve(a, at, g, row, x, h, old, K: tl.constexpr, BLOCK: tl.constexpr):
    """x of the step after, from x, its h and those of `earlier`."""
    step, A, S = at.index, tl.load(row + 2), tl.load(row + 3)
    if a.noise is None and a.seed is None:
        A = tl.where(S != 0.0, float("nan"), A)
    x_next = A * x + tl.load(row + SCALARS) * h
    for k in tl.static_range(1, K):
        more = x_next + tl.load(row + SCALARS + k) * old[k - 1]
        x_next = tl.where(step >= k, more, x_next)
    # The first is known when the kernel is compiled.
    if a.noise is not None or a.seed is not None:  # noqa: SIM102
        if S != 0.0:
            if a.noise is not None:
                z = tl.load(a.noise + step * g.slab + g.at, mask=g.inside, other=0.0)
            else:
                z = normal(tl.load(a.seed + at.b), step, g.first // 4, BLOCK)
            x_next = x_next + S * z
    return x_next


@triton.jit
def put(a, at, g, row, h, x_next, waits, K: tl.constexpr, GUIDED: tl.constexpr):
    """Writes a step down; the network's next input where `waits`."""
    step = at.index
    if K > 1:
        tl.store(a.history + slot(step, K - 1) * g.slab + g.at, h, mask=g.inside)
    tl.store(a.latents + g.at + slot(step + 1, a.R) * g.slab, x_next, mask=g.inside)
    scaled = (tl.load(row + 4) * x_next).to(a.model_input.dtype.element_ty)
    going_on = g.inside & (step + 1 < a.T) & waits
    tl.store(a.model_input + g.at, scaled, mask=going_on)
    if GUIDED:
        tl.store(a.model_input + g.slab + g.at, scaled, mask=going_on)


@triton.jit
def sweep(
    a,
    at,
    piece,
    K: tl.constexpr,
    CRITERION: tl.constexpr,
    STAGES: tl.constexpr,
    GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Updates one block of a sample that moves and leaves its share of the sums."""
    g, row = block_of(a, at.b, piece, BLOCK), row_of(a, at.index, K)
    step, fresh, boundary = at.index, at.run == 0, (at.index + 1) % STAGES == 0
    x = latents_of(a, step, g, g.inside)
    called = g.inside
    if a.outputs is not None:
        called = g.inside & fresh
    m = output_of(a, at.b, g, called, GUIDED)
    if a.outputs is not None:
        h, e, wrong = keep(a, at, g, row, x, m, fresh, CRITERION, STAGES)
        if (MEASURED >> CRITERION) & 1:
            leave(a, at, piece, 2, wrong * wrong, g.inside & fresh & boundary)
    else:
        h = tl.load(row) * x + tl.load(row + 1) * m
    x_next = solve(a, at, g, row, x, h, earlier(a, step, g, K), K, BLOCK)

    if (FIRST >> CRITERION) & 1:
        x0 = x
        if STAGES > 1:
            x0 = latents_of(a, step + 1 + a.R - STAGES, g, g.inside & boundary)
        change = x_next - x0
        terms = change * change if (THIRD >> CRITERION) & 1 else tl.abs(change)
        leave(a, at, piece, 1, terms, g.inside & boundary)
        if (THIRD >> CRITERION) & 1:
            wanted = g.inside & boundary & (step + 1 >= 3 * STAGES)
            x1 = latents_of(a, step + 1 + a.R - 2 * STAGES, g, wanted)
            x2 = latents_of(a, step + 1 + a.R - 3 * STAGES, g, wanted)
            third = (x_next - x2) - 3.0 * (x0 - x1)
            leave(a, at, piece, 0, third * third, wanted)

    if K > 1 or a.outputs is not None:
        # A ring's new entry replaces one that was read above, by another thread perhaps.
        tl.debug_barrier()
    if a.outputs is not None:
        tl.store(a.outputs + slot(at.nfe, 3) * g.slab + g.at, e, mask=g.inside & fresh)
    put(a, at, g, row, h, x_next, True, K, GUIDED)
