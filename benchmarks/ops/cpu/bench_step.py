"""`step` on the CPU against the same step in eager torch, under torch.compile, and a memcpy.

    python -m pytest benchmarks/ops/cpu/bench_step.py --benchmark-only

One step from the middle of a 50-step DDIM sampling (cases.py). All implementations of a case
(runners.py) are checked against `reference`, then timed in turns, so that a busy
stretch of the machine meets all of them; conftest.py adds the ratios between them to the JSON. A
run on a quiet machine becomes the stored one as a copy in benchmarks/results/step-cpu.json.
"""

import functools
from collections.abc import Callable

import diffusers
import pytest
import torch
from torch import Tensor

from adaptive_kernels.ops import reference
from adaptive_kernels.sampling.state import State
from benchmarks.ops.baselines.start import Result
from benchmarks.ops.cpu.cases import (
    CASES,
    DTYPES,
    GUIDANCE,
    MIDDLE,
    STEPS,
    Case,
    costs,
    kept,
    problem,
    slot,
    weights,
)
from benchmarks.ops.cpu.runners import IMPLEMENTATIONS

UNIT = 2.0**-24  # relative error of a float32 rounding


@functools.lru_cache(maxsize=1)
def expected(case: Case) -> tuple[State, State]:
    """The state after the step by `reference`, deciding per sample and for the whole batch."""
    state = problem(case)
    both = []
    for batch_wide in (False, True):
        after = state.clone()
        # The solver adds no noise; this spares `reference` from making it.
        after.noise = torch.zeros(1).expand(STEPS, *after.latents.shape[1:])
        reference.unchecked_step(after.arguments()._replace(batch_wide=batch_wide), True)
        margin = (after.score[MIDDLE + 1] - 1).abs().min()
        assert margin > 0.05, f"the decision is a tie within rounding: {after.score[MIDDLE + 1]}"
        both.append(after)
    return tuple(both)


def roundings(name: str, case: Case) -> int:
    """Roundings in the network's dtype before the update.

    Eager torch combines the guidance in that dtype, as released, and diffusers scales in it what
    it is given in it; under `defect` that is float32.
    """
    if name != "eager" or case.dtype == "float32" or case.skipped:
        return 0
    return 4 if case.guided or not case.filled else 0


def output_size(case: Case) -> Tensor:
    """[B, N] float64: the terms of the guided output in absolute value."""
    m = problem(case).model_output.double().abs()
    if not case.guided:
        return m
    unconditional, conditional = m.chunk(2)
    return unconditional + GUIDANCE * (conditional + unconditional)


def fill_size(case: Case) -> Tensor:
    """[B, N] float64: the terms of the fill in absolute value."""
    f_0, f_1 = weights(case)[:2].double().abs()
    outputs = (kept(case, problem(case), back).double().abs() for back in (1, 2))
    return sum(f * e for f, e in zip((f_0, f_1), outputs, strict=True))


def bound(name: str, case: Case) -> Tensor:
    """[B, N] float64: bound on the error of the new latents.

    x_next adds A x and products of the guided output; diffusers adds two of those, of sizes up to
    A |m| and |m|, where the table has their sum. 16 roundings in float32 cover every term, 12 more
    the fill and the repair.
    """
    state, network = problem(case), torch.finfo(DTYPES[case.dtype])
    if case.skipped:
        m = fill_size(case)
    elif case.filled:
        repair = weights(case)[3].double().abs()
        m = (1 + repair) * output_size(case) + repair * fill_size(case)
    else:
        m = output_size(case)
    A = float(state.rows[MIDDLE, 2])
    unit = (28 if case.filled else 16) * UNIT + roundings(name, case) * network.eps / 2
    return unit * (A * slot(state, 1).double().abs() + (1 + A) * m + network.tiny)


def within(what: str, value: Tensor, exact: Tensor, error: Tensor) -> None:
    wrong = (value.double() - exact).abs() - error
    assert bool((wrong <= 0).all()), f"{what}: {wrong.max()} more than allowed"


def verify(name: str, case: Case, runner: Callable) -> None:
    """Raises AssertionError unless one call of the runner equals `reference`."""
    runner()
    if name == "memcpy":
        return runner.result()
    result = runner.result()
    per_sample, batch_wide = expected(case)
    right = per_sample if name == "step" else batch_wide
    refresh = torch.as_tensor(result.refresh).expand(case.sizes[0])
    assert torch.equal(refresh, right.refreshed[MIDDLE + 1]), "decision"
    error, exact = bound(name, case), slot(right, 0).double()
    assert result.latents.dtype == torch.float32, "dtype of the latents"
    within("latents", result.latents, exact, error)
    scale, network = float(right.rows[MIDDLE, 4]), torch.finfo(DTYPES[case.dtype])
    exact = (scale * exact).repeat(1 + case.guided, 1)
    error = (scale * error).repeat(1 + case.guided, 1) + network.eps / 2 * exact.abs() * 1.01
    assert result.model_input.dtype == DTYPES[case.dtype], "dtype of the network's input"
    within("network input", result.model_input, exact, error + network.tiny)
    if case.filled and not case.skipped:
        verify_defect(name, case, result, right)


def verify_defect(name: str, case: Case, result: Result, right: State) -> None:
    """The kept output, 8 roundings in float32, and the score, 4 more for the fill.

    The score is the defect in units of the threshold: a product and a quotient. The rms of a sum is
    off by at most the rms of what its terms are off by. A sum of n squares in any order rounds at
    most n times, which moves its root by half of that share.
    """
    low = roundings(name, case) * torch.finfo(DTYPES[case.dtype]).eps / 2
    size = output_size(case)
    within("kept output", result.kept, kept(case, right, 0).double(), (8 * UNIT + low) * size)
    terms = (12 * UNIT + low) * size + 12 * UNIT * fill_size(case)
    error = float(weights(case)[6]) * terms.square().mean(1).sqrt().max()
    unit = float(costs(case)[0]) / float(right.threshold[0])
    exact = right.measures[:, 0] * unit
    share = (size.numel() / 2 + 12) * UNIT
    score = torch.as_tensor(result.score).expand_as(exact)
    within("score", score, exact, error * unit + share * exact)


@functools.lru_cache(maxsize=1)
def measure(case: Case, take_turns: Callable) -> dict:
    """Rounds of every implementation whose check passed, the failure of the others."""
    failures, runners = {}, {}
    with torch.no_grad():
        for name, make in IMPLEMENTATIONS.items():
            try:
                runner = make(case)
                verify(name, case, runner)
                runners[name] = runner
            except Exception as error:  # the test of this implementation raises it
                failures[name] = error
        return failures | take_turns(runners)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step(benchmark, replay, take_turns, count_operators, case, implementation):
    rounds = measure(case, take_turns)[implementation]
    if isinstance(rounds, Exception):
        raise rounds
    benchmark.group = str(case)
    benchmark.extra_info.update(
        implementation=implementation,
        shape=case.shape,
        dtype=case.dtype,
        criterion=case.criterion,
        guided=case.guided,
        skipped=case.skipped,
        bytes_moved=case.bytes_moved,
        # torch.compile refuses the mode that counts; its kernels pass by the dispatcher.
        operator_calls=None if implementation == "compiled" else count_operators(rounds.call),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
    )
    replay(rounds)
