"""What launch 0 of a runner must leave, by `reference` in float64, and how far off it may be.

A bound is a number of roundings times their unit times the sum of the terms in absolute value,
carried through the steps of a run. Eager torch rounds guidance and products in the network's dtype,
and diffusers adds A sigma m and sigma' m, of sizes up to A |m| and |m|, where the table has their
difference.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from adaptive_kernels.ops import reference
from adaptive_kernels.sampling.state import State
from benchmarks.ops.baselines.start import Result
from benchmarks.ops.gpu.cases import GUIDANCE, RING, RUN, START, Case, Lane

UNIT = 2.0**-24  # relative error of a float32 rounding
# In float32: 16 of a step, 12 more of fill and repair. In the network's dtype, eager only:
# 3 of the guidance, 1 of a product.
ROUNDINGS, LOW_ROUNDINGS = 28, 4
# Sums are added in trees or in double: far fewer roundings than elements.
SUM_ROUNDINGS = 256


class Expected(NamedTuple):
    """States, deciding per sample and for the whole batch."""

    after: tuple[State, State]  # launch 0
    begun: tuple[State, State]  # the first step of it


def expected(case: Case, lane: Lane) -> Expected:
    begun, after = [], []
    for batch_wide in (False, True):
        first = lane.state.clone()
        first.model_output = lane.model_outputs[0]
        first.tables = replace(first.tables, rule=first.rule._replace(batch_wide=batch_wide))
        step(first, fresh=True)
        last = first.clone()
        for _ in range(1, case.steps):
            step(last, fresh=False)
        begun.append(first)
        after.append(last)
    return Expected(tuple(after), tuple(begun))


def step(state: State, fresh: bool) -> None:
    """By `reference`, which is spared from making noise: the solver adds none."""
    none = torch.zeros(1, device=state.latents.device)
    state.noise = none.expand(len(state.rows), *state.latents.shape[1:])
    reference.unchecked_step(state.arguments(), fresh)
    state.noise = None


def verify(case: Case, lane: Lane, right: Expected, result: Result, eager: bool) -> None:
    """Raises AssertionError unless the result is the expected one within its bounds."""
    after, begun = right.after[result.batch_wide], right.begun[result.batch_wide]
    steps = torch.as_tensor(result.steps, device=after.index.device)
    _claim(bool((after.index - START == steps).all()), "steps done", steps)
    refresh = torch.as_tensor(result.refresh, device=after.index.device)
    _claim(bool(((after.run == 0) == refresh).all()), "decision", refresh)
    low = torch.finfo(case.dtype).eps / 2 if eager and case.dtype != torch.float32 else 0.0
    unit = ROUNDINGS * UNIT + LOW_ROUNDINGS * low
    bound = latents_bound(case, lane, case.steps, unit, eager)
    _claim(result.latents.dtype == torch.float32, "dtype of the latents", result.latents.dtype)
    exact = after.current().double()
    _within("latents", result.latents, exact, bound)
    network = torch.finfo(case.dtype)
    halves = 1 + case.size.guided
    # The solver's input scale is 1.
    exact, error = exact.repeat(halves, 1), bound.repeat(halves, 1)
    error = error + network.eps / 2 * exact.abs() * 1.01 + network.tiny
    _claim(result.model_input.dtype == case.dtype, "dtype of the input", result.model_input.dtype)
    _within("network input", result.model_input, exact, error)
    if case.criterion == "defect":
        exact = after.outputs[int(after.nfe[0] - 1) % 3].double()
        error = (8 * UNIT + LOW_ROUNDINGS * low) * output_size(case, lane)
        _within("kept output", result.kept, exact, error)
    first = latents_bound(case, lane, 1, unit, eager)
    _verify_score(case, lane, begun, result, first, low)


def output_size(case: Case, lane: Lane) -> Tensor:
    """[B, N] float64: the terms of the guided output in absolute value."""
    m = lane.model_outputs[0].double().abs()
    if not case.size.guided:
        return m
    unconditional, conditional = m.chunk(2)
    return unconditional + GUIDANCE * (conditional + unconditional)


def entry(lane: Lane, k: int) -> Tensor:
    """[7] float64: fill, repair and spread of step k of the run from START."""
    gap = RUN if k == 0 else k
    return lane.state.weights[START + k, gap - 1, RUN - 1].double()


def latents_bound(case: Case, lane: Lane, steps: int, unit: float, cancelling: bool) -> Tensor:
    """[B, N] float64: bound on the error of the latents after some steps of launch 0.

    cancelling: whether the terms of the solver are added one by one, as diffusers does.
    """
    m = output_size(case, lane)
    filled = case.criterion == "defect"
    kept = [lane.kept(back).double().abs() for back in (0, 1)] if filled else []
    x, error = lane.latents(0).double().abs(), 0.0
    for k in range(steps):
        A, C = float(lane.state.rows[START + k, 2]), abs(float(lane.state.rows[START + k, 10]))
        h = m
        if kept:
            f, r = (part.abs() for part in entry(lane, k)[:6].split(3))
            if k == 0:
                h = m + r[0] * m + r[1] * kept[0] + r[2] * kept[1]
            else:
                h = f[0] * m + f[1] * kept[0]
        error = A * error + unit * (A * x + (1 + A if cancelling else C) * h)
        x = A * x + C * h
    return error


def _verify_score(
    case: Case, lane: Lane, begun: State, result: Result, bound: Tensor, low: float
) -> None:
    """The score is a ratio of norms; a norm is off by at most the norm of what its terms are.

    With outputs rounded in the network's dtype a norm of differences may be all rounding: then this
    claims nothing, and the same runner in float32 must be asked, as the tests do.
    """
    exact = begun.score[START + 1].double()
    score = torch.as_tensor(result.score, device=exact.device).double()
    if case.criterion == "defect":
        unit = 12 * UNIT + LOW_ROUNDINGS * low
        fill = sum(w.abs() * lane.kept(k).double().abs() for k, w in enumerate(entry(lane, 0)[:2]))
        terms = unit * output_size(case, lane) + 12 * UNIT * fill
        off = norm(terms) / (begun.measures[:, 0] / entry(lane, 0)[6] * case.elements**0.5)
    else:
        at = [begun.latents[(START + 1 - k) % RING].double() for k in range(4)]
        terms = at[0].abs() + 3 * at[1].abs() + 3 * at[2].abs() + at[3].abs()
        off = norm(bound + 8 * UNIT * terms) / norm(at[0] - 3 * at[1] + 3 * at[2] - at[3])
    if result.batch_wide:
        off = off.max()
    limit = (off + SUM_ROUNDINGS * UNIT) * exact
    _within("score", score.expand_as(exact), exact, limit)


def norm(terms: Tensor) -> Tensor:
    """[B]: of the terms of each sample."""
    return terms.square().sum(1).sqrt()


def _within(what: str, value: Tensor, exact: Tensor, limit: Tensor) -> None:
    wrong = (value.double() - exact).abs() - limit
    # So written, NaN is wrong too.
    _claim(bool((wrong <= 0).all()), what, f"{float(wrong.max()):.3g} more than allowed")


def _claim(right: bool, what: str, got: object) -> None:
    if not right:
        raise AssertionError(f"{what}: {got}")
