"""The Triton kernel of one solver step: csrc/core/step.h over a batch."""

import triton
import triton.language as tl

from .decide import conclude, conclude_together
from .place import Args, moves, place
from .sums import arrive, sums_of
from .sweep import sweep


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
