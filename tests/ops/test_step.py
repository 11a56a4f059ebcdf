"""`step` and `advance` equal `reference` on every element they write, and write nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_kernels.ops import reference
from adaptive_kernels.rules.config import AdaptiveConfig
from tests.support import problems
from tests.support.agreement import (
    ANY_MIDWAY,
    ANY_STEP,
    DTYPES,
    RULES,
    assert_nan_stays_in_its_sample,
    assert_sampling_agrees,
    assert_step_agrees,
    midway,
    still,
)

SIZES = [1, 3, 15, 16, 17, 1023, 1024, 1025, 16385]


@settings(max_examples=60)
@given(**ANY_STEP, elements=st.sampled_from(SIZES))
def test_step_equals_reference(
    rule, dtype, guided, history, stages, stochastic, batch, elements, granularity, seed
):
    table = problems.table(7 if stages == 1 else 13, history, stages, stochastic, seed)
    config = problems.config(rule, table, granularity=granularity, seed=seed)
    assert_sampling_agrees(
        problems.state(table, batch, elements, config, guided, dtype, seed), seed
    )


@given(**ANY_MIDWAY)
def test_samples_at_different_steps(rule, batch, elements, history, seed, fresh):
    """A batch in the middle of everything: other steps, runs, finished samples among them."""
    state = midway(rule, batch, elements, history, seed)
    before = problems.clone(state)
    assert_step_agrees(state, fresh)
    alone = still(before, fresh)
    assert torch.equal(state.progress[:, alone], before.progress[:, alone])
    assert torch.equal(state.refreshed[:, alone], before.refreshed[:, alone])


@given(
    rule=st.sampled_from(RULES),
    max_skip=st.integers(1, 6),
    stages=st.sampled_from([1, 2]),
    batch=st.integers(0, 4),
    granularity=st.sampled_from(["sample", "batch"]),
    seed=st.integers(0, 10**6),
)
def test_advance_is_step_repeated(rule, max_skip, stages, batch, granularity, seed):
    table = problems.table(25, 2, stages, seed=seed)
    config = problems.config(rule, table, 0.4, max_skip, granularity, seed)
    one = problems.state(table, batch, 33, config, seed=seed)
    many = problems.clone(one)
    for tick in range(table.num_steps):
        for state in (one, many):
            state.model_output.copy_(problems.outputs(state, tick, seed))
        one.advance()
        many.step(True)
        while bool((many.progress[1] > 0).any()):
            many.step(False)
        for name, a in vars(one).items():
            if isinstance(a, torch.Tensor):
                assert torch.equal(a.nan_to_num(7), getattr(many, name).nan_to_num(7)), name
    assert bool((one.index == table.num_steps).all())
    assert torch.equal(one.nfe, one.refreshed.sum(0).int())


@pytest.mark.parametrize(("stages", "granularity"), [(1, "sample"), (2, "sample"), (1, "batch")])
def test_reference_advance_agrees_with_the_op(stages, granularity):
    steps = 16 * stages - 1
    table = problems.table(steps, 2, stages)
    for rule in RULES:
        config = problems.config(rule, table, 1.0, granularity=granularity)
        one = problems.state(table, 3, 50, config)
        two = problems.clone(one)
        while bool((one.index < steps).any()):
            for state in (one, two):
                state.model_output.copy_(problems.outputs(state, int(state.index.sum())))
            one.step(True)
            reference.step(*two.arguments(), True)
            assert torch.allclose(one.norms, two.norms, rtol=1e-3, atol=1e-6), rule
            for state in (one, two):
                state.model_output.copy_(problems.outputs(state, int(state.index.sum())))
            one.advance()
            reference.advance(*two.arguments())
            assert torch.equal(one.progress, two.progress), rule
        assert torch.allclose(one.current(), two.current(), atol=1e-5), rule
        assert rule == "never" or steps * 3 > one.nfe.sum() > 3 * 3 * stages, rule


@pytest.mark.parametrize(
    ("rule", "elements"), [("third_order", 40000), ("defect", 40000), ("plan", 100003)]
)
def test_result_is_bitwise_the_same_for_any_batch_threads_and_run(rule, elements):
    table = problems.table(8, 3, stochastic=True)
    config = problems.config(rule, table, 0.5)
    together = problems.state(table, 3, elements, config, guided=True)
    again = problems.clone(together)
    alone = [problems.state(table, 3, elements, config, guided=True) for _ in range(3)]
    threads = torch.get_num_threads()

    def only(state, b):
        """A state of sample b alone."""
        rows = torch.tensor([b, b + 3])
        picked = problems.clone(state)
        for name in ("latents", "history", "outputs", "progress", "refreshed", "score"):
            if (value := getattr(state, name)) is not None:
                setattr(picked, name, value[:, b : b + 1].clone())
        for name in ("norms", "guidance_scale", "threshold", "seed"):
            setattr(picked, name, getattr(state, name)[b : b + 1].clone())
        for name in ("model_input", "model_output", "timestep"):
            setattr(picked, name, getattr(state, name)[rows].clone())
        return picked

    alone = [only(state, b) for b, state in enumerate(alone)]
    while bool((together.index < table.num_steps).any()):
        together.model_output.copy_(problems.outputs(together, int(together.index.sum())))
        again.model_output.copy_(together.model_output)
        for b, state in enumerate(alone):
            state.model_output.copy_(together.model_output[[b, b + 3]])
        together.advance()
        try:
            torch.set_num_threads(1)
            again.advance()
            for state in alone:
                state.advance()
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(together.latents.nan_to_num(7), again.latents.nan_to_num(7))
        assert torch.equal(together.norms, again.norms)
        for b, state in enumerate(alone):
            assert torch.equal(state.progress[:, 0], together.progress[:, b])
            assert torch.equal(
                state.latents[:, 0].nan_to_num(7), together.latents[:, b].nan_to_num(7)
            )
            assert torch.equal(state.norms[0], together.norms[b])


def test_nothing_outside_the_buffers_is_touched():
    """Every written buffer stands between sentinels in one allocation."""
    table = problems.table(6, 3)
    config = problems.config("defect", table)
    for elements in (1, 7, 1025, 16390):
        state = problems.state(table, 2, elements, config, guided=True, dtype=torch.float16)
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
            "outputs",
        ):
            value = getattr(state, name)
            room = torch.full((value.numel() + 64,), 77, dtype=torch.uint8).to(value.dtype)
            inside = room[32 : 32 + value.numel()].view(value.shape)
            inside.copy_(value)
            setattr(state, name, inside)
            guards.append((room, room[:32].clone(), room[-32:].clone()))
        for tick in range(6):
            state.model_output.copy_(problems.outputs(state, tick))
            state.advance()
        for room, head, tail in guards:
            assert torch.equal(room[:32], head)
            assert torch.equal(room[-32:], tail)


def test_nan_in_one_sample_refreshes_it_and_leaves_the_others():
    table = problems.table(12)
    for criterion in ("third_order", "released", "defect"):
        config = AdaptiveConfig(1e9, 3, criterion)
        assert_nan_stays_in_its_sample(problems.state(table, 3, 64, config))


@pytest.mark.parametrize("history", [1, 2])
def test_an_output_that_a_fill_does_not_use_may_be_anything(history):
    table = problems.table(12, history)
    for rule in ("defect", "third_order linear repair"):
        clean = problems.state(table, 2, 300, problems.config(rule, table, 1e9))
        while int(clean.nfe.min()) < 4:
            clean.model_output.copy_(problems.outputs(clean, int(clean.index.sum())))
            clean.advance()
        sick = problems.clone(clean)
        sick.outputs[(clean.nfe[0] - 3) % 3] = torch.nan  # E_2
        output = problems.outputs(clean, 7)
        for state in (clean, sick):
            state.model_output.copy_(output)
            state.advance()
        assert clean.nfe[0] == 5 and bool(clean.current().isfinite().all())
        assert torch.equal(clean.current(), sick.current())


def test_noise_given_by_the_caller_is_what_is_added():
    table = problems.table(5, 2, stochastic=True)
    noise = torch.randn(5, 2, 21)
    state = problems.state(table, 2, 21)
    state.noise = noise
    still = problems.clone(state)
    still.noise = torch.zeros_like(noise)
    output = problems.outputs(state, 0)
    for one in (state, still):
        one.model_output.copy_(output)
        one.step(True)
    difference = state.current() - still.current()
    expected = table.S[0].float() * noise[0]
    assert torch.allclose(difference, expected, rtol=0, atol=4 * problems.EPS * 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("guided", [False, True])
def test_the_common_loop_gives_the_bits_of_the_general_one(dtype, rule, guided):
    """A second history term of weight zero sends the same numbers through the general loops."""
    for elements in (1, 16, 255, 257, 1024, 17000):
        table = problems.table(9)
        config = problems.config(rule, table, 0.4)
        common = problems.state(table, 2, elements, config, guided, dtype)
        general = problems.clone(common)
        general.history = torch.zeros(1, 2, elements)
        general.rows = torch.cat([common.rows, torch.zeros(9, 1)], dim=1)
        for tick in range(9):
            for state in (common, general):
                state.model_output.copy_(problems.outputs(common, tick))
            common.advance()
            general.advance()
        for name in ("latents", "norms", "model_input", "progress", "score", "outputs"):
            if (a := getattr(common, name)) is not None:
                b = getattr(general, name).nan_to_num(7)
                assert torch.equal(a.nan_to_num(7), b), (name, elements)
