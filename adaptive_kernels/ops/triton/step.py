"""The Triton kernel of one solver step: csrc/core/step.h over a batch."""

import triton
import triton.language as tl

from .decide import (
    FIRST,
    HEAD,
    MEASURED,
    MEASURES,
    SCALARS,
    THIRD,
    conclude,
    conclude_together,
    sums_of,
)
from .defect import SHARE
from .noise import normal
from .place import Args, moves, place, weights_at


@triton.jit
def slot(step, depth):
    """Slot of a step in a ring; remainders of 64 bits are slow."""
    return step.to(tl.int32) % depth


@triton.jit
def keep(a, at, row, x, m, slab, block, inside, CRITERION: tl.constexpr, STAGES: tl.constexpr):
    """With a fill: h, e = u x + w m, and e minus the fill; csrc/cpu/tile_fill.h."""
    fresh, boundary = at.run == 0, (at.index + 1) % STAGES == 0
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
    outputs = a.outputs + block
    oldest = slot(at.nfe, 3)  # of E_2, where a refresh leaves its own
    e0 = tl.load(outputs + slot(oldest + 2, 3) * slab, mask=inside & need_0, other=0.0)
    e1 = tl.load(outputs + slot(oldest + 1, 3) * slab, mask=inside & need_1, other=0.0)
    e2 = tl.load(outputs + oldest * slab, mask=inside & has_2, other=0.0)
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
def leave(a, at, piece, kind: tl.constexpr, terms, where):
    """Leaves this program's share of a sum for the last program of the sample."""
    share = tl.sum(tl.where(where, terms, 0.0).to(tl.float64), 0)
    tl.store(a.workspace + at.b * a.stride + HEAD + kind * a.pieces + piece, share)


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
    lane = tl.arange(0, BLOCK)
    inside = lane < a.N - piece * BLOCK
    slab = tl.cast(a.B, tl.int64) * a.N
    block = at.b * a.N + piece * BLOCK + lane
    step, fresh, boundary = at.index, at.run == 0, (at.index + 1) % STAGES == 0
    row = a.rows + step * (SCALARS + K)
    latents = a.latents + block
    A, S = tl.load(row + 2), tl.load(row + 3)
    if a.noise is None and a.seed is None:
        A = tl.where(S != 0.0, float("nan"), A)
    x = tl.load(latents + slot(step, a.R) * slab, mask=inside, other=0.0)

    called = inside
    if a.outputs is not None:
        called = inside & fresh
    m = tl.load(a.model_output + block, mask=called, other=0.0).to(tl.float32)
    if GUIDED:
        conditional = tl.load(a.model_output + slab + block, mask=called, other=0.0)
        m = m + tl.load(a.guidance_scale + at.b) * (conditional.to(tl.float32) - m)
    if a.outputs is not None:
        h, e, wrong = keep(a, at, row, x, m, slab, block, inside, CRITERION, STAGES)
        if (MEASURED >> CRITERION) & 1:
            leave(a, at, piece, 2, wrong * wrong, inside & fresh & boundary)
    else:
        h = tl.load(row) * x + tl.load(row + 1) * m

    x_next = A * x + tl.load(row + SCALARS) * h
    for k in tl.static_range(1, K):
        exists = step >= k
        at_k = slot(step + (K - 1 - k), K - 1) * slab
        old = tl.load(a.history + at_k + block, mask=inside & exists, other=0.0)
        x_next = tl.where(exists, x_next + tl.load(row + SCALARS + k) * old, x_next)
    # The first is known when the kernel is compiled.
    if a.noise is not None or a.seed is not None:  # noqa: SIM102
        if S != 0.0:
            if a.noise is not None:
                z = tl.load(a.noise + step * slab + block, mask=inside, other=0.0)
            else:
                z = normal(tl.load(a.seed + at.b), step, piece * (BLOCK // 4), BLOCK)
            x_next = x_next + S * z

    if (FIRST >> CRITERION) & 1:
        x0 = x
        if STAGES > 1:
            back = slot(step + 1 + a.R - STAGES, a.R)
            x0 = tl.load(latents + back * slab, mask=inside & boundary, other=0.0)
        change = x_next - x0
        terms = change * change if (THIRD >> CRITERION) & 1 else tl.abs(change)
        leave(a, at, piece, 1, terms, inside & boundary)
        if (THIRD >> CRITERION) & 1:
            wanted = inside & boundary & (step + 1 >= 3 * STAGES)
            back_1 = slot(step + 1 + a.R - 2 * STAGES, a.R)
            back_2 = slot(step + 1 + a.R - 3 * STAGES, a.R)
            x1 = tl.load(latents + back_1 * slab, mask=wanted, other=0.0)
            x2 = tl.load(latents + back_2 * slab, mask=wanted, other=0.0)
            third = (x_next - x2) - 3.0 * (x0 - x1)
            leave(a, at, piece, 0, third * third, wanted)

    if K > 1 or a.outputs is not None:
        # A ring's new entry replaces one that was read above, by another thread perhaps.
        tl.debug_barrier()
    if K > 1:
        tl.store(a.history + slot(step, K - 1) * slab + block, h, mask=inside)
    if a.outputs is not None:
        tl.store(a.outputs + slot(at.nfe, 3) * slab + block, e, mask=inside & fresh)
    tl.store(latents + slot(step + 1, a.R) * slab, x_next, mask=inside)
    scaled = (tl.load(row + 4) * x_next).to(a.model_input.dtype.element_ty)
    going_on = inside & (step + 1 < a.T)
    tl.store(a.model_input + block, scaled, mask=going_on)
    if GUIDED:
        tl.store(a.model_input + slab + block, scaled, mask=going_on)


@triton.jit
def arrive(a, b, programs):
    """Whether this program is the last of `programs`; leaves the counter of sample b at zero."""
    counter = tl.cast(a.workspace + b * a.stride, tl.pointer_type(tl.int32))
    # Every thread of the program has read and written what is its own.
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1
    tl.store(counter, 0, mask=last)
    return last


# Of the numbers only N says how rows are vectorised; no other is worth a variant.
@triton.jit(
    do_not_specialize=["R", "B", "T", "G", "Q", "pieces", "stride", "max_skip", "warmup", "fresh"]
)
def step_kernel(
    latents, history, model_input, timestep, progress, measures, refreshed, score, outputs,
    workspace, model_output, guidance_scale, threshold, output_noise, rows, weights, rule_table,
    seed, noise,
    R, B, N, T, G, Q, pieces, stride, max_skip, warmup, fresh,
    K: tl.constexpr, CRITERION: tl.constexpr, STAGES: tl.constexpr, GUIDED: tl.constexpr,
    BATCH_WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One solver update of the samples that move, their sums, decisions and next network input.

    Work: a program updates BLOCK elements of a sample, leaves its share of the sums in `workspace`
    and takes a ticket; the last one of the sample (of the batch where it decides together) adds the
    shares in a fixed order and decides. Bytes: as csrc/cpu/step.cpp, each stream once.
    """
    a = Args(
        latents, history, model_input, timestep, progress, measures, refreshed, score, outputs,
        workspace, model_output, guidance_scale, threshold, output_noise, rows, weights, rule_table,
        seed, noise,
        R, B, N, T, G, Q, pieces, stride, max_skip, warmup,
    )  # fmt: skip
    program = tl.program_id(0)
    at = place(a, (program // pieces).to(tl.int64))
    piece = (program % pieces).to(tl.int64)
    moving = moves(a, at, fresh)
    if moving:
        sweep(a, at, piece, K, CRITERION, STAGES, GUIDED, BLOCK)
    if BATCH_WIDE:
        last = arrive(a, 0, tl.num_programs(0))
        if last:
            conclude_together(a, fresh, K, CRITERION, STAGES, GUIDED)
    elif moving:
        last = arrive(a, at.b, pieces)
        if last:
            sums = sums_of(a, at.b, CRITERION)
            conclude(a, at, sums.first, sums, K, CRITERION, STAGES, GUIDED)
