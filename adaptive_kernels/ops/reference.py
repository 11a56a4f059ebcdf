"""The definition of correct: `step` and `advance` in plain torch, float64 inside.

Every other implementation is tested against this one. It runs on any device, asks the host
nothing, and is the ops' default where no kernel is registered.
"""

import torch
from torch import Tensor

from ..rules import defect as noisy
from ..rules.criteria import (
    DEFECT,
    EVERY,
    FORCED,
    IDLE,
    PLAN,
    RELEASED,
    THIRD_ORDER,
    Rule,
    longest_run,
    of,
)
from .check import check
from .fields import OUTPUTS, RULE, SCALARS, Arguments, bind


def philox(seed: Tensor, step: Tensor, quads: int) -> list[Tensor]:
    """Philox 4x32-10 (Salmon et al., SC 2011) with key = seed and counter = (quad, step).

    Args:
        seed: [B] int64. step: [B] int64. quads: number of counters, 0 .. quads - 1.
    Returns: four [B, quads] int64 of 32 random bits.
    """
    low = 0xFFFFFFFF
    quad = torch.arange(quads, device=seed.device)
    shape = (seed.shape[0], quads)
    k0, k1 = (seed & low)[:, None], ((seed >> 32) & low)[:, None]
    zero = torch.zeros(shape, dtype=torch.int64, device=seed.device)
    c = [zero + (quad & low), zero + (quad >> 32), zero + (step & low)[:, None], zero]
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps both halves right.
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [((b >> 32) & low) ^ c[1] ^ k0, b & low, ((a >> 32) & low) ^ c[3] ^ k1, a & low]
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c


def normal(seed: Tensor, step: Tensor, elements: int) -> Tensor:
    """Standard normal noise as a function of (seed, step, element) alone.

    Box-Muller on Philox bits, each taken as the middle of one of 2^23 equal cells of (0, 1).

    Args:
        seed: [B] int64. step: [B] int64. elements: N.
    Returns: [B, N] float64.
    """
    bits = philox(seed, step, (elements + 3) // 4)
    u = [((b >> 9).double() + 0.5) / 2**23 for b in bits]
    pairs = []
    for i in (0, 2):
        radius, angle = (-2 * u[i].log()).sqrt(), 2 * torch.pi * u[i + 1]
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(pairs, dim=2).flatten(1)[:, :elements]


def decide(rule, step, run, third, first, first_1, first_2, elements, predicted, threshold):
    """The decision after row `step`: (refresh [B] bool, score [B] float64); csrc/core/decide.h.

    Args:
        rule: a `Rule`.
        step: [B] int64, the row just done. run: [B] int64, rows done on the current output.
        third, first, first_1, first_2: [B] float64 sums. elements: number summed over.
        predicted: [B] float64, what the rules `defect` and `plan` predict for the next step.
        threshold: [B] float64.
    """
    criterion, max_skip = rule.criterion, rule.max_skip
    following = (step + 1) // rule.stages
    skipped = (run - 1) // rule.stages
    boundary = (step + 1) % rule.stages == 0
    if criterion == THIRD_ORDER:
        left, right = third.sqrt(), threshold * first_1.sqrt()
        refresh = (skipped >= max_skip) | ~(left < right)
    elif criterion == RELEASED:
        d, d1, d2 = first / elements, first_1 / elements, first_2 / elements
        left, right = ((d + d2) / 2 - d1).abs(), threshold * d1
        decisions = following - FORCED
        guarded = (decisions >= IDLE) & (skipped >= decisions.clamp(max=max_skip))
        refresh = guarded | ~(left <= right)
    elif criterion == DEFECT:
        left, right = predicted, threshold
        refresh = (skipped >= max_skip) | ~(left <= right)
    else:
        left = right = torch.full_like(threshold, torch.nan)
        refresh = skipped >= (max_skip if criterion == EVERY else 0)
        if criterion == PLAN:
            refresh = ~(predicted <= 0)
    score = torch.where((left == 0) & (right == 0), 1.0, left / right)
    forced = following < rule.warmup
    refresh = torch.where(boundary, refresh | forced, run == 1)
    return refresh, torch.where(boundary & ~forced, score, torch.nan)


def _distance(steps: Tensor, size: int) -> Tensor:
    """Index of a distance of at least 1 in a table of `size`; longer ones share the last."""
    return steps.clamp(1, size) - 1


def step(*arguments, **named) -> None:
    """One solver update of every sample that does not wait for the network; see `ops.step`."""
    a, own = bind("step", arguments, named)
    check(a, own["condition"])
    unchecked_step(a, own["fresh"])


def advance(*arguments, **named) -> None:
    """The whole run of every sample: `step` until every sample waits; see `ops.advance`."""
    a, own = bind("advance", arguments, named)
    check(a, own["condition"])
    for k in range(longest_run(_rule(a), len(a.rows))):
        unchecked_step(a, k == 0)


def _rule(a: Arguments) -> Rule:
    return Rule(*(getattr(a, name) for name in RULE))


def unchecked_step(a: Arguments, fresh: bool) -> None:
    """`step` of arguments that go together, or nearly so: noise may be an expanded tensor."""
    rule, stages, needed = _rule(a), a.stages, of(a.criterion).sums
    (ring, B, N), (T, width) = a.latents.shape, a.rows.shape
    K, device = width - SCALARS, a.latents.device
    index, run, nfe, last_call, call_before = (row.long() for row in a.progress)
    # A sample whose counters cannot be those of a sampling is left alone.
    active = (index < T) & ((run > 0) | fresh) & (nfe >= 0) & (call_before >= 0)
    active &= (run >= 0) & (call_before <= last_call) & (last_call <= index)
    began = active & (run == 0)
    i = index.clamp(0, T - 1)
    sample = torch.arange(B, device=device)
    row = a.rows[i].double()
    p, q, A, S, input_scale, next_timestep, u, w, ps, qs = (row[:, k, None] for k in range(SCALARS))

    m = a.model_output.double()
    if a.model_output.shape[0] == 2 * B:
        m = m[:B] + a.guidance_scale.double()[:, None] * (m[B:] - m[:B])
    x = a.latents[i % ring, sample].double()
    h = p * x + q * m
    defect = torch.zeros(B, dtype=torch.float64, device=x.device)
    if a.outputs is not None:
        size = a.weights.shape[1]
        gap, previous = _distance(i - last_call, size), _distance(last_call - call_before, size)
        entry = a.weights[i, gap, previous].double()
        # E_k, newest first; what does not exist yet counts as zero.
        kept = [a.outputs[(nfe - 1 - k) % OUTPUTS, sample].double() for k in range(OUTPUTS)]
        old = [torch.where((nfe > k)[:, None], kept[k], 0.0) for k in range(OUTPUTS)]
        fill = sum(
            torch.where(entry[:, k, None] == 0, 0.0, entry[:, k, None] * old[k])
            for k in range(OUTPUTS)
        )
        e = u * x + w * m
        delta = e - fill
        defect = delta.square().sum(1)
        repair = entry[:, 3, None] * e + entry[:, 4, None] * old[0] + entry[:, 5, None] * old[1]
        repairs = (entry[:, 3:6] != 0).any(1)[:, None]
        refreshed_h = h + torch.where(repairs, qs * repair, 0.0)
        h = torch.where(began[:, None], refreshed_h, ps * x + qs * fill)
    x_next = A * x + row[:, SCALARS, None] * h
    for k in range(1, K):
        exists = (i >= k)[:, None]
        old = a.history[(i - k) % (K - 1), sample].double()
        x_next = x_next + torch.where(exists, row[:, SCALARS + k, None] * old, 0.0)
    z = torch.full_like(x_next, torch.nan)
    if a.noise is not None:
        z = a.noise[i, sample].double()
    elif a.seed is not None:
        z = normal(a.seed, i, N)
    x_next = x_next + torch.where(S == 0, 0.0, S * z)

    boundary = ((i + 1) % stages == 0) & active
    if "defect" in needed:
        # What a refresh keeps holds less of its noise; the solver took all of it.
        share = torch.where(boundary, a.measures[:, noisy.SHARE], 0.0)[:, None]
        e = torch.where(share != 0, e - share * delta, e)

    back = [a.latents[(i + 1 - k * stages) % ring, sample].double() for k in (1, 2, 3)]
    third = (x_next - 3 * back[0] + 3 * back[1] - back[2]).square().sum(1)
    change = x_next - back[0]
    first = change.square().sum(1) if "third" in needed else change.abs().sum(1)
    first_1, first_2 = a.measures[:, 0].clone(), a.measures[:, 1].clone()
    sums = [third, first, first_1, first_2, defect]
    elements = N
    if a.batch_wide:
        sums = [torch.where(active, s, 0.0).sum().expand(B) for s in sums]
        elements = N * active.sum()
    *sums, defect = sums
    run = torch.where(active, run + 1, run)
    call_before = torch.where(began, last_call, call_before)
    last_call = torch.where(began, i, last_call)
    following = (i + 1).clamp(max=T - 1)
    predicted = torch.zeros_like(a.threshold, dtype=torch.float64)
    if a.criterion == PLAN:
        predicted = a.rule_table[following, 0, 0, 0].double()
    if "defect" in needed:
        most = a.output_noise.double().square()
        measures = noisy.measure(a.measures, entry, defect / elements, most)
        measures = torch.where((began & boundary)[:, None], measures, a.measures)
        own = noisy.kept(measures, entry)
        a.measures.copy_(torch.where((began & (most > 0))[:, None], own, measures))
        skips = _distance((run - 1) // stages + 1, a.rule_table.shape[2])
        gap = _distance(last_call - call_before, a.rule_table.shape[1])
        predicted = noisy.predict(a.measures, a.rule_table[last_call, gap, skips].double())
    refresh, value = decide(rule, i, run, *sums, elements, predicted, a.threshold.double())
    if "defect" in needed:
        gap, previous = (
            _distance(following - last_call, size),
            _distance(last_call - call_before, size),
        )
        share = noisy.share(a.measures, a.weights[following, gap, previous].double())
        asked = refresh & (i + 1 < T) & ((following + 1) % stages == 0)
        own = a.measures[:, noisy.SHARE]
        own.copy_(torch.where(active & (most > 0), torch.where(asked, share, 0.0), own))

    def write(buffer, slot, values, where):
        old = buffer[slot, sample]
        mask = where if old.dim() == 1 else where[:, None]
        buffer[slot, sample] = torch.where(mask, values.to(buffer.dtype), old)

    write(a.latents, (i + 1) % ring, x_next, active)
    if K > 1:
        write(a.history, i % (K - 1), h, active)
    if "first" in needed:
        latest = torch.stack([first, first_1], dim=1)
        a.measures[:, :2] = torch.where(boundary[:, None], latest, a.measures[:, :2])
    going_on = active & (i + 1 < T)
    if a.outputs is not None:
        write(a.outputs, nfe % OUTPUTS, e, began)
    write(a.refreshed, i, torch.ones_like(began), began)
    write(a.refreshed, following, refresh, going_on)
    write(a.score, following, value, going_on)
    index = torch.where(active, index + 1, index)
    run = torch.where(active & (refresh | (i + 1 == T)), 0, run)
    a.progress.copy_(torch.stack([index, run, nfe + began, last_call, call_before]))
    halves = a.model_input.shape[0] // B if B else 1
    for target, value in ((a.model_input, input_scale * x_next), (a.timestep, next_timestep[:, 0])):
        mask = going_on if target.dim() == 1 else going_on[:, None]
        mask, value = (torch.cat([t] * halves) for t in (mask, value))
        target.copy_(torch.where(mask, value.to(target.dtype), target))
