"""The definition of correct: `step` and `advance` in plain torch, float64 inside.

Every other implementation is tested against this one. It runs on any device, asks the host
nothing, and is the ops' default where no kernel is registered.
"""

import torch
from torch import Tensor

SCALARS = 10  # p, q, A, S, next input scale, next timestep, u, w, ps, qs; then C_0 .. C_{K-1}
OUTPUTS = 3  # raw outputs kept
NEVER, EVERY, THIRD_ORDER, RELEASED, DEFECT, PLAN = range(6)


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
        rule: (criterion, max_skip, warmup, stages).
        step: [B] int64, the row just done. run: [B] int64, rows done on the current output.
        third, first, first_1, first_2: [B] float64 sums. elements: number summed over.
        predicted: [B] float64, what the rules `defect` and `plan` predict for the next step.
        threshold: [B] float64.
    """
    criterion, max_skip, warmup, stages = rule
    following = (step + 1) // stages
    skipped = (run - 1) // stages
    boundary = (step + 1) % stages == 0
    if criterion == THIRD_ORDER:
        left, right = third.sqrt(), threshold * first_1.sqrt()
        refresh = (skipped >= max_skip) | ~(left < right)
    elif criterion == RELEASED:
        d, d1, d2 = first / elements, first_1 / elements, first_2 / elements
        left, right = ((d + d2) / 2 - d1).abs(), threshold * d1
        decisions = following - 4
        guarded = (decisions >= 5) & (skipped >= decisions.clamp(max=max_skip))
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
    forced = following < warmup
    refresh = torch.where(boundary, refresh | forced, run == 1)
    return refresh, torch.where(boundary & ~forced, score, torch.nan)


def _distance(steps: Tensor, size: int) -> Tensor:
    """Index of a distance of at least 1 in a table of `size`; longer ones share the last."""
    return steps.clamp(1, size) - 1


def step(
    latents: Tensor,  # [R, B, N] float32, ring
    history: Tensor,  # [K - 1, B, N] float32, ring
    model_input: Tensor,  # [B or 2B, N]
    timestep: Tensor,  # [B or 2B]
    progress: Tensor,  # [5, B] int32: index, run, nfe, last refresh, the one before
    norms: Tensor,  # [B, 2] float64
    refreshed: Tensor,  # [T, B] bool
    score: Tensor,  # [T, B] float32
    outputs: Tensor | None,  # [3, B, N] float32, ring
    workspace: Tensor | None,  # of kernels alone
    model_output: Tensor,  # [B or 2B, N]
    guidance_scale: Tensor,  # [B] float32
    threshold: Tensor,  # [B] float32
    rows: Tensor,  # [T, 10 + K] float32
    weights: Tensor | None,  # [T, G, G, 7] float32
    run_cost: Tensor | None,  # [T, G, Q] float32
    seed: Tensor,  # [B] int64
    noise: Tensor | None,  # [T, B, N] float32
    criterion: int,
    max_skip: int,
    warmup: int,
    stages: int,
    batch_wide: bool,
    fresh: bool,
    condition: int | None = None,
) -> None:
    """One solver update of every sample that does not wait for the network; see `ops.step`."""
    if condition is not None:
        raise RuntimeError("condition needs the CUDA library")
    ring, B, N = latents.shape
    T, K = rows.shape[0], rows.shape[1] - SCALARS
    index, run, nfe, newest, before = (row.long() for row in progress)
    active = (index < T) & ((run > 0) | fresh)
    began = active & (run == 0)
    i = index.clamp(max=T - 1)
    sample = torch.arange(B, device=latents.device)
    row = rows[i].double()
    p, q, A, S, input_scale, next_timestep, u, w, ps, qs = (row[:, k, None] for k in range(SCALARS))

    m = model_output.double()
    if model_output.shape[0] == 2 * B:
        m = m[:B] + guidance_scale.double()[:, None] * (m[B:] - m[:B])
    x = latents[i % ring, sample].double()
    h = p * x + q * m
    defect = torch.zeros(B, dtype=torch.float64, device=x.device)
    if outputs is not None:
        size = weights.shape[1]
        entry = weights[i, _distance(i - newest, size), _distance(newest - before, size)].double()
        # E_k, newest first; what does not exist yet counts as zero.
        old = [
            torch.where((nfe > k)[:, None], outputs[(nfe - 1 - k) % OUTPUTS, sample].double(), 0.0)
            for k in range(OUTPUTS)
        ]
        fill = sum(
            torch.where(entry[:, k, None] == 0, 0.0, entry[:, k, None] * old[k])
            for k in range(OUTPUTS)
        )
        e = u * x + w * m
        defect = (e - fill).square().sum(1)
        repair = entry[:, 3, None] * e + entry[:, 4, None] * old[0] + entry[:, 5, None] * old[1]
        repairs = (entry[:, 3:6] != 0).any(1)[:, None]
        refreshed_h = h + torch.where(repairs, qs * repair, 0.0)
        h = torch.where(began[:, None], refreshed_h, ps * x + qs * fill)
    x_next = A * x + row[:, SCALARS, None] * h
    for k in range(1, K):
        exists = (i >= k)[:, None]
        old = history[(i - k) % (K - 1), sample].double()
        x_next = x_next + torch.where(exists, row[:, SCALARS + k, None] * old, 0.0)
    z = normal(seed, i, N) if noise is None else noise[i, sample].double()
    x_next = x_next + torch.where(S == 0, 0.0, S * z)

    back = [latents[(i + 1 - k * stages) % ring, sample].double() for k in (1, 2, 3)]
    boundary = ((i + 1) % stages == 0) & active
    third = (x_next - 3 * back[0] + 3 * back[1] - back[2]).square().sum(1)
    change = x_next - back[0]
    first = change.square().sum(1) if criterion == THIRD_ORDER else change.abs().sum(1)
    first_1, first_2 = norms[:, 0].clone(), norms[:, 1].clone()
    sums = [third, first, first_1, first_2, defect]
    elements = N
    if batch_wide:
        sums = [torch.where(active, s, 0.0).sum().expand(B) for s in sums]
        elements = N * active.sum()
    *sums, defect = sums
    run = torch.where(active, run + 1, run)
    before = torch.where(began, newest, before)
    newest = torch.where(began, i, newest)
    following = (i + 1).clamp(max=T - 1)
    predicted = torch.zeros_like(threshold, dtype=torch.float64)
    if criterion == PLAN:
        predicted = run_cost[following, 0, 0].double()
    if criterion == DEFECT:
        spread = (defect / elements).sqrt() * entry[:, 6]
        norms[:, 0] = torch.where(began & boundary, spread, norms[:, 0])
        skips = _distance((run - 1) // stages + 1, run_cost.shape[2])
        cost = run_cost[newest, _distance(newest - before, run_cost.shape[1]), skips]
        predicted = norms[:, 0] * cost.double()
    rule = (criterion, max_skip, warmup, stages)
    refresh, value = decide(rule, i, run, *sums, elements, predicted, threshold.double())

    def write(buffer, slot, values, where):
        old = buffer[slot, sample]
        mask = where if old.dim() == 1 else where[:, None]
        buffer[slot, sample] = torch.where(mask, values.to(buffer.dtype), old)

    write(latents, (i + 1) % ring, x_next, active)
    if K > 1:
        write(history, i % (K - 1), h, active)
    if criterion in (THIRD_ORDER, RELEASED):
        norms.copy_(torch.where(boundary[:, None], torch.stack([first, first_1], dim=1), norms))
    going_on = active & (i + 1 < T)
    if outputs is not None:
        write(outputs, nfe % OUTPUTS, e, began)
    write(refreshed, i, torch.ones_like(began), began)
    write(refreshed, following, refresh, going_on)
    write(score, following, value, going_on)
    progress[0] = torch.where(active, index + 1, index)
    progress[1] = torch.where(active & (refresh | (i + 1 == T)), 0, run)
    progress[2] = nfe + began
    progress[3], progress[4] = newest, before
    halves = model_input.shape[0] // B if B else 1
    for target, value in ((model_input, input_scale * x_next), (timestep, next_timestep[:, 0])):
        mask = going_on if target.dim() == 1 else going_on[:, None]
        mask, value = (torch.cat([t] * halves) for t in (mask, value))
        target.copy_(torch.where(mask, value.to(target.dtype), target))


def advance(*arguments) -> None:
    """The whole run of every sample: `step` until every sample waits; see `ops.advance`."""
    (*arguments, condition) = arguments if len(arguments) == 24 else (*arguments, None)
    rows, (criterion, max_skip, _, stages) = arguments[13], arguments[18:22]
    # `released` may skip five times before its guard wakes (idle for the first five decisions).
    longest = {RELEASED: max(max_skip, 5), NEVER: 0}.get(criterion, max_skip)
    for k in range(min((longest + 1) * stages, rows.shape[0])):
        step(*arguments, k == 0, condition)
