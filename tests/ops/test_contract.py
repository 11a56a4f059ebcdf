"""What `step` and `advance` do, claimed of every implementation alike.

The reference is the definition of correct, C++ the one whose bits the kernels have. What is true of
one implementation alone is in the tests named after it.
"""

import dataclasses
import re

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st

from adaptive_kernels import ops
from adaptive_kernels.ops import fields, reference
from adaptive_kernels.rules.config import AdaptiveConfig
from tests.support import problems
from tests.support.agreement import (
    ANY_MIDWAY,
    ANY_STEP,
    any_state,
    assert_nan_stays_in_its_sample,
    assert_sampling_agrees,
    assert_step_agrees,
    midway,
    still,
)
from tests.support.emulation import emulated
from tests.support.implementations import (
    ALL,
    CPU,
    KERNELS,
    REFERENCE,
    assert_idle,
    claim,
    of_each,
)
from tests.support.problems import assert_same

# Of a GPU's kernels and of the CPU, sums are added in another order.
SUMS = ("measures", "score")


@pytest.fixture(autouse=True)
def device():
    """Every test begins on the same emulated device; claims go on to others."""
    if emulated.loaded:
        emulated.set_device(2, 2)


def tolerance(rule):
    """Of scores and measures: `released` compares differences of sums."""
    return 1e-3 if "released" in rule else 1e-5


def sampled(states, seed=0):
    """Samples states to the end, side by side on the same outputs; yields after every tick."""
    first, tick = states[0], 0
    while bool((first.index < len(first.rows)).any()):
        output = problems.outputs(first, tick, seed)
        for state in states:
            state.model_output.copy_(output)
            state.advance()
        tick += 1
        yield tick


@claim(
    10,
    lambda one: ANY_STEP | {"elements": st.sampled_from(one.sizes[::-1])},
    [one for one in ALL if one is not REFERENCE],
)
def test_step_equals_reference(implementation, seed, **drawn):
    state = implementation.state(any_state(6, 0.4, seed=seed, **drawn))
    assert_sampling_agrees(state, seed)
    assert_idle(implementation, state)


@of_each()
def test_without_seeds_a_step_that_would_add_noise_leaves_nan(implementation):
    table = problems.table(4, stochastic=True)
    state = implementation.begun(table, 2, 40, problems.config("third_order", table))
    state.tables = dataclasses.replace(state.tables, adds_noise=False)
    assert state.arguments().seed is None
    state.model_output.copy_(problems.outputs(state, 0))
    state.step(True)
    assert bool(state.current().isnan().all()) and bool((state.index == 1).all())


@claim(10, lambda one: ANY_MIDWAY | {"fresh": st.sampled_from([False, True])})
def test_samples_at_different_steps(implementation, fresh, **drawn):
    """A batch in the middle of everything: other steps, runs, finished samples among them."""
    before = midway(**drawn)
    state = implementation.state(before)
    assert_step_agrees(state, fresh)
    alone = still(before, fresh)
    for name in ("progress", "refreshed", "score", "latents", "history"):
        now, then = getattr(state, name).cpu()[:, alone], getattr(before, name)[:, alone]
        assert torch.equal(now.nan_to_num(7), then.nan_to_num(7)), name
    assert torch.equal(state.measures.cpu()[alone], before.measures[alone])
    assert_idle(implementation, state)


@claim(10, lambda one: ANY_MIDWAY)
def test_advance_from_the_middle_of_runs(implementation, **drawn):
    """A run that goes on where a step left off may be as long as a whole one."""
    one = implementation.state(midway(**drawn))
    many = one.clone()
    one.advance()
    many.step(True)
    for _ in range(6):
        many.step(False)
    assert_same(one, many)
    assert_idle(implementation, one)


@claim(
    10,
    lambda one: (
        ANY_STEP
        | {
            "threshold": st.sampled_from([3.0, 0.3, 1.0]),
            "max_skip": st.integers(1, 9).map(lambda skips: 10 - skips),
            "batch": st.sampled_from([2, 0, 3]),
            "elements": st.sampled_from([*(s for s in one.sizes if s < 9000), 0, 33][::-1]),
        }
    ),
)
def test_advance_is_step_repeated(implementation, seed, **drawn):
    # As many whole steps as the guard of `released` needs to wake, and more.
    begun = any_state(13, seed=seed, **drawn)
    one = implementation.state(begun)
    many = one.clone()
    for tick in range(len(begun.rows)):
        output = problems.outputs(one, tick, seed)
        for state in (one, many):
            state.model_output.copy_(output)
        one.advance()
        many.step(True)
        while bool((many.run > 0).any()):
            many.step(False)
        assert_same(one, many, what=tick)
        assert_idle(implementation, one)
        if bool((one.index == len(begun.rows)).all()):
            break
    assert bool((one.index == len(begun.rows)).all())
    assert torch.equal(one.nfe, one.refreshed.sum(0).int())


@claim(
    10,
    lambda one: (
        ANY_STEP
        | {
            "elements": st.sampled_from([s for s in one.sizes if s < 60000][::-1]),
            "max_skip": st.integers(1, 9),
        }
    ),
    KERNELS,
)
def test_elements_have_the_bits_of_the_cpu(implementation, rule, seed, **drawn):
    """The whole of a sampling, noise included; measures and scores agree to rounding."""
    cpu = any_state(10, 0.6, rule=rule, seed=seed, **drawn)
    state = implementation.state(cpu)
    for _ in sampled([cpu, state], seed):
        # A tie: either decision is right.
        assume(not bool(((cpu.score - 1).abs() < 1e-3).any()))
        assert_same(cpu, state, SUMS, rtol=tolerance(rule))
    assert_idle(implementation, state)


@of_each(KERNELS)
@pytest.mark.parametrize(("step", "elements"), [(0, 1), (3, 1027), (40, 5000)])
def test_noise_has_the_bits_of_the_cpu(implementation, step, elements):
    table = problems.table(step + 1, stochastic=True)
    cpu = problems.state(table, 3, elements)
    cpu.seed.copy_(torch.tensor([7, -1, -(2**63) + 5]))
    cpu.latents.zero_()
    cpu.rows[:, : fields.SCALARS], cpu.rows[:, 3] = 0, 1
    cpu.index.fill_(step)
    state = implementation.state(cpu)
    for one in (cpu, state):
        one.step(True)
    assert torch.equal(state.current().cpu().view(torch.int32), cpu.current().view(torch.int32))
    assert state.current().std() > 0.5


@of_each()
@pytest.mark.parametrize("elements", [21, 24, 1100])
def test_noise_given_by_the_caller_is_what_is_added(implementation, elements):
    table = problems.table(5, 2, stochastic=True)
    noise = torch.randn(5, 2, elements, generator=torch.Generator().manual_seed(0))
    begun = problems.state(table, 2, elements, noise=noise)
    noisy, quiet = implementation.state(begun), implementation.state(begun)
    quiet.noise.zero_()
    output = problems.outputs(begun, 0)
    for state in (noisy, quiet):
        state.model_output.copy_(output)
        state.step(True)
    difference = (noisy.current() - quiet.current()).cpu()
    expected = table.S[0].float() * noise[0]
    assert torch.allclose(difference, expected, rtol=0, atol=4 * problems.EPS * 4)


@of_each()
@pytest.mark.parametrize("rule", ["third_order", "defect", "plan", "released"])
def test_a_sample_does_not_depend_on_its_batch(implementation, rule):
    for elements in (2056,) if implementation.share < 0.5 else (33, 4104, 40008):
        table = problems.table(8, 3, stochastic=True)
        config = problems.config(rule, table, 0.5)
        together = implementation.begun(table, 3, elements, config, guided=True)
        alone = [problems.pick(together, b) for b in range(3)]
        for tick in range(8):
            output = problems.outputs(together, tick)
            for b, state in enumerate(alone):
                state.model_output.copy_(output[[b, b + 3]])
                state.advance()
            together.model_output.copy_(output)
            together.advance()
            for b, state in enumerate(alone):
                # torch splits the reference's sums as it likes.
                but = SUMS if implementation is REFERENCE else ()
                alike = problems.pick(together, b)
                assert_same(state, alike, but, what=(elements, tick, b), rtol=1e-12)


@of_each()
def test_nothing_outside_the_buffers_is_touched(implementation):
    """Every written buffer stands between sentinels in one allocation, off 16-byte boundaries."""
    table = problems.table(5, 3)
    config = problems.config("defect", table)
    # Several tiles, chunks and pieces, where that does not take long.
    large = [] if implementation.share < 0.5 else [(20480, 1), (16390, 0)]
    for elements, shift in ((1, 0), (7, 1), (8, 0), (1025, 1), (2056, 1), *large):
        begun = problems.state(table, 2, elements, config, guided=True, dtype=torch.float16)
        plain, fenced = implementation.state(begun), implementation.state(begun)
        check = problems.fence(fenced, shift)
        for _ in sampled([plain, fenced]):
            # Triton adds in another order where rows stand elsewhere.
            assert_same(plain, fenced, SUMS, elements)
        check()


@of_each()
@pytest.mark.parametrize("criterion", ["third_order", "released", "defect"])
def test_nan_in_one_sample_refreshes_it_and_leaves_the_others(implementation, criterion):
    config = AdaptiveConfig(1e9, 3, criterion, warmup=4)
    assert_nan_stays_in_its_sample(implementation.begun(problems.table(12), 3, 64, config))


@of_each()
@pytest.mark.parametrize("rule", ["defect", "third_order linear repair"])
def test_an_output_that_a_fill_does_not_use_may_be_anything(implementation, rule):
    for history in (1, 2):
        table = problems.table(24, history)
        clean = implementation.begun(table, 2, 300, problems.config(rule, table, 1e9))
        for _ in sampled([clean]):
            if int(clean.nfe.min()) == 4:
                break
        sick = clean.clone()
        sick.outputs[(clean.nfe[0] - 3) % 3] = torch.nan  # E_2
        output = problems.outputs(clean, 7)
        for state in (clean, sick):
            state.model_output.copy_(output)
            state.advance()
        assert clean.nfe[0] == 5 and bool(clean.current().isfinite().all())
        assert torch.equal(clean.current(), sick.current())


@of_each()
@pytest.mark.parametrize("row", range(len(fields.PROGRESS)))
def test_counters_that_cannot_be(implementation, row):
    """A sample with such counters is left alone; C++, which may ask the host, refuses the call."""
    table = problems.table(6, 2)
    begun = problems.state(table, 2, 30, problems.config("defect", table))
    begun.progress[row, 1] = 3 if row > 2 else -1
    state = implementation.state(begun)
    state.model_output.copy_(problems.outputs(begun, 0))
    before = problems.elsewhere(state)
    if implementation is CPU:
        with pytest.raises(RuntimeError, match="progress must not be negative"):
            state.step(True)
        assert_same(state, before)
        return
    state.step(True)
    assert state.index[0] == 1
    for name in ("progress", "latents", "history", "outputs", "refreshed", "score"):
        now, then = getattr(state, name).cpu(), getattr(before, name)
        assert torch.equal(now[:, 1].nan_to_num(7), then[:, 1].nan_to_num(7)), name
    assert torch.equal(state.measures.cpu()[1], before.measures[1])


@of_each()
@pytest.mark.parametrize(
    ("rule", "skips"), [("third_order", False), ("released", True), ("defect", True)]
)
def test_a_tie_of_two_zeros(implementation, rule, skips):
    """Latents that stay as they are, and outputs that the fill predicts to the bit: it scores 1,

    and third_order, which skips below its limit, refreshes, where the others skip up to theirs.
    """
    table = problems.table(8)
    config = dataclasses.replace(problems.config(rule, table), warmup=4)
    begun = problems.state(table, 2, 20, config)
    begun.rows.zero_()
    begun.rows[:, 2] = 1
    begun.threshold.zero_()
    state = implementation.state(begun)
    for _ in range(8):
        state.advance()
    assert bool(state.score.nan_to_num(1).eq(1).all())
    assert not bool(state.score[4:].isnan().any())
    assert bool(state.refreshed.all()) is not skips


@of_each()
@pytest.mark.parametrize("rule", ["third_order", "released", "defect"])
def test_samples_that_wait_have_no_part_in_a_common_decision(implementation, rule):
    table = problems.table(12)
    config = problems.config(rule, table, 1e9, granularity="batch")
    begun = problems.state(table, 3, 50, config)
    while begun.run.max() == 0:
        begun.model_output.copy_(problems.outputs(begun, begun.index[0].item()))
        begun.step(True)
    begun.run[1] = 0
    state, expected = implementation.state(begun), begun.clone()
    state.step(False)
    reference.step(*expected.arguments(), False)
    at = int(begun.index[0])
    assert state.index.tolist() == [at + 1, at, at + 1]
    assert torch.allclose(state.measures.cpu(), expected.measures)
    assert torch.allclose(state.score.cpu(), expected.score, equal_nan=True)
    assert torch.equal(state.progress.cpu(), expected.progress)


@of_each()
def test_the_longest_skip_may_be_as_long_as_int64(implementation):
    table = problems.table(6)
    begun = problems.state(table, 1, 20, problems.config("third_order", table, 1e9))
    state = implementation.state(problems.ruled(begun, max_skip=2**63 - 1))
    for _ in sampled([state]):
        pass
    assert state.index.item() == 6 and state.nfe.item() == 3


@of_each()
@pytest.mark.parametrize("max_skip", [1, 3, 7])
def test_the_guard_of_released_wakes_late(implementation, max_skip):
    table = problems.table(24)
    config = problems.config("released", table, 1e9, max_skip)
    state = implementation.begun(table, 1, 20, config)
    for _ in sampled([state]):
        pass
    calls = state.refreshed[:, 0].nonzero()[:, 0].tolist()
    # Four calls, a run of five that no guard sees, then as the guard has it.
    assert calls[:5] == [0, 1, 2, 3, 9] and calls[5] - calls[4] == min(max_skip, 10) + 1


@claim(
    2,
    lambda one: {
        "guided": st.sampled_from([True, False]),
        "noisy": st.sampled_from([True, False]),
        "history": st.sampled_from([3, 1, 2]),
        "stages": st.sampled_from([2, 1]),
        "slot": st.sampled_from([1, 0, 2]),
        "ticks": st.integers(0, 9).map(lambda ticks: 9 - ticks),
        "seed": st.integers(0, 10**6),
    },
)
def test_a_slot_that_takes_another_sample_has_the_bits_of_a_fresh_one(
    implementation, rule, guided, noisy, history, stages, slot, ticks, seed
):
    """Whatever stood there before, NaN included; the other samples never notice."""
    noisy = noisy and "repair" not in rule
    table = problems.table(11, history, stages, stochastic=noisy, seed=seed)
    config = problems.config(rule, table, 0.5, seed=seed)
    noise = torch.randn(11, 3, 40, generator=torch.Generator().manual_seed(seed)) if noisy else None
    begun = problems.state(table, 3, 40, config, guided, seed=seed, noise=noise)
    state = implementation.state(begun)
    other = problems.state(
        *(table, 3, 40, config, guided),
        seed=seed + 1,
        noise=None if noise is None else -noise,
        tables=begun.tables,
    )
    fresh = implementation.state(other)
    undisturbed = state.clone()
    rows = [row for row in (slot, slot + 3) if row < len(state.model_output)]
    rest = [b for b in range(3) if b != slot]

    def tick(number):
        output = problems.outputs(begun, number, seed)
        for one in (state, undisturbed, fresh):
            one.model_output.copy_(output)

    for number in range(ticks):
        tick(number)
        state.model_output[rows] = torch.nan if number % 2 else torch.inf
        state.advance()
        undisturbed.advance()
    state.admit(slot, problems.start_of(fresh, slot, state.tables))
    for number in range(11):
        tick(number + ticks)
        for one in (state, undisturbed, fresh):
            one.advance()
        assert_same(problems.pick(state, slot), problems.pick(fresh, slot), what=number)
        for b in rest:
            assert_same(problems.pick(state, b), problems.pick(undisturbed, b), what=(number, b))


def refusal(verb, arguments):
    with pytest.raises(RuntimeError) as caught:
        verb(*arguments)
    # The compiled libraries say first where in their sources they stand.
    return re.sub(r"^\w+, \S*csrc/\S+:\d+, ", "", str(caught.value).splitlines()[0])


def calls(implementation, change):
    """The arguments of a small step of the implementation and of C++, both changed alike."""
    begun = problems.ready("defect", guided=True, noise=torch.zeros(8, 2, 40))
    both = []
    for state in (implementation.state(begun), begun):
        if state is begun or state.workspace is None:
            state.workspace = torch.zeros(2, 2, 16, dtype=torch.float64)
        both.append(state.arguments()._replace(**change(state.arguments())))
    return both


def assert_refused_alike(implementation, change):
    own, right = calls(implementation, change)
    step, advance = implementation.load()
    for verb, wanted, more in ((step, ops.step, [True]), (advance, ops.advance, [])):
        assert refusal(verb, [*own, *more]) == refusal(wanted, [*right, *more])


OTHERS = [one for one in ALL if one is not CPU]
WRONG = {
    "other integer": lambda t: t.to(torch.int32 if t.dtype != torch.int32 else torch.int64),
    "other float": lambda t: t.to(torch.float64 if t.dtype != torch.float64 else torch.float32),
    "larger": lambda t: t.new_zeros([size + 1 for size in t.shape]),
    "one more dimension": lambda t: t.new_zeros([*t.shape, 1]),
    "empty": lambda t: t[:0],
    "strided": lambda t: t.new_zeros([2 * size for size in t.shape])[
        tuple([slice(None, None, 2)] * t.dim())
    ],
}


@of_each(OTHERS)
@pytest.mark.parametrize("name", fields.NAMES)
def test_a_wrong_tensor_is_refused_in_the_words_of_the_cpu(implementation, name):
    for change in WRONG.values():
        assert_refused_alike(
            implementation, lambda a, change=change: {name: change(getattr(a, name))}
        )
    if not fields.FIELD[name].optional:
        assert_refused_alike(implementation, lambda a: {name: None})


@of_each(OTHERS)
@pytest.mark.parametrize(
    "changes",
    [
        *[{"criterion": 6}, {"criterion": -1}, {"max_skip": -1}, {"warmup": 0}],
        *[{"stages": 0}, {"stages": 2}, {"outputs": None}, {"weights": None}],
        *[{"rule_table": None}, {"criterion": 2, "outputs": None, "weights": None}],
    ],
    ids=str,
)
def test_a_wrong_rule_is_refused_in_the_words_of_the_cpu(implementation, changes):
    assert_refused_alike(implementation, lambda a: changes)


@of_each(OTHERS)
def test_shared_memory_is_refused_in_the_words_of_the_cpu(implementation):
    for name, other, view in (
        ("model_output", "model_input", lambda t: t),
        ("outputs", "latents", lambda t: t[:3]),
        ("threshold", "score", lambda t: t[1]),
    ):
        assert_refused_alike(
            implementation, lambda a, n=name, o=other, v=view: {n: v(getattr(a, o))}
        )
    # What is only read may be shared.
    own, _ = calls(implementation, lambda a: {"guidance_scale": a.threshold})
    implementation.load()[0](*own, True)


def test_an_element_off_by_little_is_found(monkeypatch):
    """The comparison with the reference fails where it should."""
    state = problems.state(problems.table(6), 2, 40)
    state.model_output.copy_(problems.outputs(state, 0))
    step = type(state).step

    def off(self, fresh):
        step(self, fresh)
        self.latents[1, 1, 7] += 1e-5

    monkeypatch.setattr(type(state), "step", off)
    with pytest.raises(AssertionError):
        assert_step_agrees(state, True)
