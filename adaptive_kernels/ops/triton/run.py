"""The Triton kernel of a run's later steps, where its decisions need no sums of them."""

import triton
import triton.language as tl

from .decide import conclude, decide, foreseen
from .defect import measures_at
from .place import Args, Place, moves, place
from .sums import MEASURES, Sums, arrive
from .sweep import block_of, earlier, keep, latents_of, output_of, put, row_of, solve


@triton.jit
def nothing():
    """The sums of a step that nobody has added up."""
    zero = tl.cast(0, tl.float64)
    return Sums(zero, zero, zero, zero, zero, zero)


@triton.jit
def asks(a, at, CRITERION: tl.constexpr, STAGES: tl.constexpr):
    """Whether the network is called after this step, as `conclude` will say."""
    own, run = measures_at(a.measures + MEASURES * at.b), at.run + 1
    predicted = foreseen(a, at.index + 1, run, at.last_call, at.call_before, own, CRITERION, STAGES)
    threshold = tl.load(a.threshold + at.b).to(tl.float64)
    refresh, _ = decide(a, at.index, run, nothing(), predicted, threshold, CRITERION, STAGES)
    return refresh


# As those of `step.step_kernel`.
@triton.jit(do_not_specialize=["R", "B", "T", "G", "Q", "pieces", "stride", "max_skip", "warmup"])
def run_kernel(
    latents, history, model_input, timestep, progress, measures, refreshed, score, outputs,
    workspace, model_output, guidance_scale, threshold, output_noise, rows, weights, rule_table,
    seed, noise,
    R, B, N, T, G, Q, pieces, stride, max_skip, warmup,
    K: tl.constexpr, CRITERION: tl.constexpr, STAGES: tl.constexpr, GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """All steps that samples take after the one of a fresh output, until they wait for the network.

    Work: a program takes its BLOCK elements of a sample from step to step, with the latents and the
    solver's history in registers, and finds every decision by itself, since none needs more than
    what the first step has measured. No element is read again that this kernel wrote: between
    threads only a launch's end would order that everywhere. The last program of the sample writes
    the decisions down, when no other one reads the counters any more. Bytes: latents, history and
    the output read once, kept outputs and given noise at each step; latents and history written at
    each step, the network's input once.
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
    if moves(a, at, 0):
        g, index, run = block_of(a, at.b, piece, BLOCK), at.index, at.run
        x, old = latents_of(a, index, g, g.inside), earlier(a, index, g, K)
        m = x
        if a.outputs is None:
            m = output_of(a, at.b, g, g.inside, GUIDED)
        # Entries of the rings that were read are replaced from here on.
        tl.debug_barrier()
        end = tl.cast(a.T, tl.int64)
        while index < end:
            here = Place(at.b, index, run, at.nfe, at.last_call, at.call_before)
            refresh, row = asks(a, here, CRITERION, STAGES), row_of(a, index, K)
            if a.outputs is None:
                h = tl.load(row) * x + tl.load(row + 1) * m
            else:
                # None of these steps is on a fresh output.
                h, _, _ = keep(a, here, g, row, x, m, refresh & False, CRITERION, STAGES)
            x = solve(a, here, g, row, x, h, old, K, BLOCK)
            # The last row's input stays where it is when all steps are done.
            put(a, here, g, row, h, x, refresh | (index + 2 >= a.T), K, GUIDED)
            if K > 1:
                old = (h,) + old[:-1]  # noqa: RUF005 (Triton knows no other way)
            index += 1
            run += 1
            end = tl.where(refresh, index, end)
        last = arrive(a, at.b, pieces)
        if last:
            index, run = at.index, at.run
            while index < end:
                here = Place(at.b, index, run, at.nfe, at.last_call, at.call_before)
                sums = nothing()
                conclude(a, here, sums.first, sums, K, CRITERION, STAGES, GUIDED)
                tl.debug_barrier()
                index += 1
                run += 1
