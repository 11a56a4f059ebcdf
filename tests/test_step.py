"""`step` and `advance` equal `reference` on every element they write, and write nothing else."""

import problems
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adaptive_kernels import reference
from adaptive_kernels.config import AdaptiveConfig

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CRITERIA = ["never", "every(2)", "third_order", "released"]
SIZES = [1, 3, 15, 16, 17, 1023, 1024, 1025, 16385]


def assert_step_agrees(of, fresh):
    """One op step against one reference step from the same state; returns the reference's."""
    expected = problems.clone(of)
    bound = problems.update_bound(of.rows, of, of.model_output)
    before = problems.clone(of)
    of.step(fresh)
    reference.step(*expected.arguments(), fresh)
    moved = of.index > before.index
    assert torch.equal(of.progress[0], expected.progress[0])
    batch = torch.arange(of.latents.shape[1])
    slot = of.index.long() % of.latents.shape[0]
    error = (of.latents[slot, batch].double() - expected.latents[slot, batch].double()).abs()
    # Both store float32: half a unit in the last place of the result on top of the bound.
    stored = expected.latents[slot, batch].double().abs() * problems.EPS
    assert bool((error <= bound + 2 * stored)[moved].all()), (error - bound).max()

    # Everything but the new latents' slot is untouched, bit for bit.
    keep = torch.ones(of.latents.shape[:2], dtype=torch.bool)
    keep[slot[moved], batch[moved]] = False
    bits = (of.latents.view(torch.int32), before.latents.view(torch.int32))
    assert torch.equal(bits[0][keep], bits[1][keep])

    near = (expected.score.nan_to_num(0) - 1).abs() < 1e-4
    assume(not bool(near.any()))
    assert torch.equal(of.refreshed, expected.refreshed)
    assert torch.equal(of.progress, expected.progress)
    assert torch.equal(of.timestep, expected.timestep)
    assert torch.equal(of.model_input[~rows_of(moved, of)], before.model_input[~rows_of(moved, of)])
    return expected, bound


def rows_of(mask, of):
    return mask.repeat(len(of.model_input) // max(len(mask), 1))


@settings(max_examples=30)
@given(
    criterion=st.sampled_from(CRITERIA),
    dtype=st.sampled_from(DTYPES),
    guided=st.booleans(),
    history=st.integers(1, 4),
    stages=st.sampled_from([1, 1, 2]),
    stochastic=st.booleans(),
    batch=st.integers(1, 4),
    elements=st.sampled_from(SIZES),
    seed=st.integers(0, 10**6),
)
def test_step_equals_reference(
    criterion, dtype, guided, history, stages, stochastic, batch, elements, seed
):
    solver = problems.table(7, history, stages, stochastic, seed)
    config = AdaptiveConfig(criterion=criterion, threshold=0.3, max_skip=3)
    of = problems.state(solver, batch, elements, config, guided, dtype, seed)
    while bool((of.index < solver.num_steps).any()):
        of.model_output.copy_(problems.outputs(of, int(of.index.sum()), seed))
        for fresh in (True, False):
            expected, bound = assert_step_agrees(of, fresh)
            assert torch.allclose(of.norms, expected.norms, rtol=1e-4, equal_nan=True)
            unit = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
            error = (of.model_input.double() - expected.model_input.double()).abs()
            limit = 2 * unit * expected.model_input.double().abs() + 2**-24
            limit += 1.5 * bound.repeat(len(error) // batch, 1)
            assert bool((error <= limit).all())


@given(
    criterion=st.sampled_from(CRITERIA),
    batch=st.integers(1, 6),
    elements=st.integers(1, 300),
    history=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    fresh=st.booleans(),
)
def test_samples_at_different_steps(criterion, batch, elements, history, seed, fresh):
    """A batch in the middle of everything: other steps, runs, finished samples among them."""
    steps = 11
    g = torch.Generator().manual_seed(seed)
    solver = problems.table(steps, history, seed=seed)
    config = AdaptiveConfig(criterion=criterion, threshold=0.5, max_skip=2)
    of = problems.state(solver, batch, elements, config, seed=seed)
    of.latents.copy_(torch.randn(of.latents.shape, generator=g))
    of.history.copy_(torch.randn(of.history.shape, generator=g))
    of.norms.copy_(torch.rand(of.norms.shape, generator=g, dtype=torch.float64) * elements)
    of.progress[0] = torch.randint(0, steps + 1, (batch,), generator=g)
    of.progress[1] = torch.randint(0, 4, (batch,), generator=g)
    of.model_output.copy_(problems.outputs(of, 0, seed))
    before = problems.clone(of)
    assert_step_agrees(of, fresh)
    still = (before.index == steps) | ((before.progress[1] == 0) & (not fresh))
    assert torch.equal(of.progress[:, still], before.progress[:, still])
    assert torch.equal(of.refreshed[:, still], before.refreshed[:, still])


@given(
    criterion=st.sampled_from(CRITERIA),
    max_skip=st.integers(1, 6),
    stages=st.sampled_from([1, 2]),
    batch=st.integers(0, 4),
    granularity=st.sampled_from(["sample", "batch"]),
    seed=st.integers(0, 10**6),
)
def test_advance_is_step_repeated(criterion, max_skip, stages, batch, granularity, seed):
    solver = problems.table(25, 2, stages, seed=seed)
    config = AdaptiveConfig(0.4, max_skip, criterion, granularity=granularity)
    one = problems.state(solver, batch, 33, config, seed=seed)
    many = problems.clone(one)
    for tick in range(solver.num_steps):
        for of in (one, many):
            of.model_output.copy_(problems.outputs(of, tick, seed))
        one.advance()
        many.step(True)
        while bool((many.progress[1] > 0).any()):
            many.step(False)
        for name in ("latents", "history", "model_input", "timestep", "progress", "score"):
            a, b = getattr(one, name), getattr(many, name)
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), name
    assert bool((one.index == solver.num_steps).all())
    assert torch.equal(one.nfe, one.refreshed.sum(0).int())


def test_reference_advance_agrees_with_the_op():
    solver = problems.table(25, 2)
    for criterion in CRITERIA:
        one = problems.state(solver, 3, 50, AdaptiveConfig(0.4, 3, criterion))
        two = problems.clone(one)
        while bool((one.index < solver.num_steps).any()):
            for of in (one, two):
                of.model_output.copy_(problems.outputs(of, int(of.index.sum())))
            one.advance()
            reference.advance(*two.arguments())
            assert torch.equal(one.progress, two.progress)
        assert torch.allclose(one.current(), two.current(), atol=1e-5)


@pytest.mark.parametrize("elements", [40000, 100003])
def test_result_is_bitwise_the_same_for_any_batch_threads_and_run(elements):
    solver = problems.table(8, 3, stochastic=True)
    config = AdaptiveConfig(0.5)
    together = problems.state(solver, 3, elements, config, guided=True)
    again = problems.clone(together)
    alone = [problems.state(solver, 3, elements, config, guided=True) for _ in range(3)]
    threads = torch.get_num_threads()

    def only(of, b):
        """A state of sample b alone."""
        rows = torch.tensor([b, b + 3])
        picked = problems.clone(of)
        for name in ("latents", "history", "progress", "refreshed", "score"):
            value = getattr(of, name)
            setattr(
                picked,
                name,
                value.select(value.dim() - 1, b).unsqueeze(-1).clone()
                if name in ("progress", "refreshed", "score")
                else value[:, b : b + 1].clone(),
            )
        for name in ("norms", "guidance_scale", "threshold", "seed"):
            setattr(picked, name, getattr(of, name)[b : b + 1].clone())
        for name in ("model_input", "model_output", "timestep"):
            setattr(picked, name, getattr(of, name)[rows].clone())
        return picked

    alone = [only(of, b) for b, of in enumerate(alone)]
    while bool((together.index < solver.num_steps).any()):
        together.model_output.copy_(problems.outputs(together, int(together.index.sum())))
        again.model_output.copy_(together.model_output)
        for b, of in enumerate(alone):
            of.model_output.copy_(together.model_output[[b, b + 3]])
        together.advance()
        try:
            torch.set_num_threads(1)
            again.advance()
            for of in alone:
                of.advance()
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(together.latents.nan_to_num(7), again.latents.nan_to_num(7))
        assert torch.equal(together.norms, again.norms)
        for b, of in enumerate(alone):
            assert torch.equal(of.progress[:, 0], together.progress[:, b])
            assert torch.equal(of.latents[:, 0].nan_to_num(7), together.latents[:, b].nan_to_num(7))
            assert torch.equal(of.norms[0], together.norms[b])


def test_nothing_outside_the_buffers_is_touched():
    """Every written buffer stands between sentinels in one allocation."""
    solver = problems.table(6, 3)
    for elements in (1, 7, 1025, 16390):
        of = problems.state(solver, 2, elements, guided=True, dtype=torch.float16)
        guards = []
        for name in (
            "latents",
            "history",
            "model_input",
            "timestep",
            "progress",
            "norms",
            "refreshed",
            "score",
        ):
            value = getattr(of, name)
            room = torch.full((value.numel() + 64,), 77, dtype=torch.uint8).to(value.dtype)
            inside = room[32 : 32 + value.numel()].view(value.shape)
            inside.copy_(value)
            setattr(of, name, inside)
            guards.append((room, room[:32].clone(), room[-32:].clone()))
        for tick in range(6):
            of.model_output.copy_(problems.outputs(of, tick))
            of.advance()
        for room, head, tail in guards:
            assert torch.equal(room[:32], head)
            assert torch.equal(room[-32:], tail)


def test_nan_in_one_sample_refreshes_it_and_leaves_the_others():
    solver = problems.table(12)
    for criterion in ("third_order", "released"):
        config = AdaptiveConfig(1e9, 3, criterion)
        clean = problems.state(solver, 3, 64, config)
        sick = problems.clone(clean)
        for tick in range(12):
            for of in (clean, sick):
                of.model_output.copy_(problems.outputs(clean, tick))
            if tick >= 1:
                sick.model_output[1, 5] = torch.inf if tick % 2 else torch.nan
            clean.advance()
            sick.advance()
            assert torch.equal(clean.current()[[0, 2]], sick.current()[[0, 2]])
        assert clean.nfe[0] < 12
        assert torch.equal(clean.nfe[[0, 2]], sick.nfe[[0, 2]])
        assert bool(sick.refreshed[:, 1].all())
        assert not bool(clean.refreshed[:, 1].all())


def test_noise_given_by_the_caller_is_what_is_added():
    solver = problems.table(5, 2, stochastic=True)
    noise = torch.randn(5, 2, 21)
    of = problems.state(solver, 2, 21)
    of.noise = noise
    still = problems.clone(of)
    still.noise = torch.zeros_like(noise)
    output = problems.outputs(of, 0)
    for one in (of, still):
        one.model_output.copy_(output)
        one.step(True)
    difference = of.current() - still.current()
    expected = solver.S[0].float() * noise[0]
    assert torch.allclose(difference, expected, rtol=0, atol=4 * problems.EPS * 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("guided", [False, True])
def test_the_common_loop_gives_the_bits_of_the_general_one(dtype, criterion, guided):
    """A second history term of weight zero sends the same numbers through the general loops."""
    for elements in (1, 16, 255, 257, 1024, 17000):
        solver = problems.table(6)
        config = AdaptiveConfig(0.4, 3, criterion)
        common = problems.state(solver, 2, elements, config, guided, dtype)
        general = problems.clone(common)
        general.history = torch.zeros(1, 2, elements)
        general.rows = torch.cat([common.rows, torch.zeros(6, 1)], dim=1)
        for tick in range(6):
            for of in (common, general):
                of.model_output.copy_(problems.outputs(common, tick))
            common.advance()
            general.advance()
        for name in ("latents", "norms", "model_input", "progress", "score"):
            a, b = (getattr(of, name).nan_to_num(7) for of in (common, general))
            assert torch.equal(a, b), (name, elements)
