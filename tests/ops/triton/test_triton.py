"""The Triton ops equal the reference, run by Triton's interpreter on CPU tensors."""

import importlib
import re
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_kernels import ops
from adaptive_kernels.ops import reference
from adaptive_kernels.ops.triton import launch as triton_kernels
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
from tests.support.interpreted import on_triton, triton

# One program, two, three and five of a sample; whole and broken ones.
SIZES = [1, 3, 17, 1025, 2049, 5000]
NAMES = [argument.name for argument in ops.step._schema.arguments]


def assert_same(one, other, rtol=0.0):
    """Bit for bit, but sums where the two add in another order."""
    for name, value in vars(one).items():
        if not isinstance(value, torch.Tensor) or name == "workspace":
            continue
        wanted = getattr(other, name)
        if rtol and name in ("norms", "score"):
            assert torch.allclose(value, wanted, rtol=rtol, atol=1e-9, equal_nan=True), name
        else:
            assert torch.equal(value.nan_to_num(7), wanted.nan_to_num(7)), name


def counters(state):
    return state.workspace.view(torch.int32)[:, 0, :1]


@settings(max_examples=25)
@given(**ANY_STEP | {"batch": st.integers(1, 2)}, elements=st.sampled_from(SIZES))
def test_step_equals_reference(
    rule, dtype, guided, history, stages, stochastic, batch, elements, granularity, seed
):
    table = problems.table(5 if stages == 1 else 7, history, stages, stochastic, seed)
    config = problems.config(rule, table, granularity=granularity, seed=seed)
    state = problems.state(table, batch, elements, config, guided, dtype, seed)
    assert_sampling_agrees(on_triton(state), seed)


@settings(max_examples=30)
@given(**ANY_MIDWAY)
def test_samples_at_different_steps(rule, batch, elements, history, seed, fresh):
    """A batch in the middle of everything: other steps, runs, finished and impossible samples."""
    state = midway(rule, batch, elements, history, seed, on_triton)
    before = problems.clone(state)
    assert_step_agrees(state, fresh)
    alone = still(before, fresh)
    for name in ("progress", "refreshed", "score", "latents", "history"):
        now, then = getattr(state, name), getattr(before, name)
        assert torch.equal(now[:, alone].nan_to_num(7), then[:, alone].nan_to_num(7)), name
    assert torch.equal(state.norms[alone], before.norms[alone])
    assert not counters(state).any()


@pytest.mark.parametrize("row", [0, 1, 2, 3, 4])
def test_a_sample_with_impossible_counters_is_left_alone(row):
    table = problems.table(6, 2)
    state = on_triton(problems.state(table, 2, 30, problems.config("defect", table)))
    state.model_output.copy_(problems.outputs(state, 0))
    state.progress[row, 1] = 3 if row > 2 else -1
    before = problems.clone(state)
    state.step(True)
    assert state.index[0] == 1
    for name in ("progress", "latents", "outputs", "refreshed"):
        now, then = getattr(state, name), getattr(before, name)
        assert torch.equal(now[:, 1].nan_to_num(7), then[:, 1].nan_to_num(7)), name


@pytest.mark.parametrize("number", range(len(RULES)))
def test_elements_have_the_bits_of_the_cpu_op(number):
    """The whole of a sampling: every rule, each with another solver and network."""
    rule, stages = RULES[number], 1 + number % 2
    stochastic, guided = number % 3 == 0, number % 4 < 2
    granularity = "batch" if number % 5 == 1 else "sample"
    table = problems.table(9, 1 + number % 3, stages, stochastic, seed=number)
    config = problems.config(rule, table, 0.4, granularity=granularity)
    cpu = problems.state(table, 2, 1100, config, guided, DTYPES[number % 3])
    one = on_triton(cpu)
    while bool((cpu.index < 9).any()):
        output = problems.outputs(cpu, int(cpu.index.sum()))
        for state in (cpu, one):
            state.model_output.copy_(output)
            state.advance()
        # The CPU adds float32 lanes first, and `released` takes differences of the sums.
        assert_same(one, cpu, rtol=1e-3 if "released" in rule else 1e-5)
    assert not counters(one).any()


@pytest.mark.parametrize(("step", "elements"), [(0, 1), (3, 1027), (40, 5000)])
def test_noise_has_the_bits_of_the_cpu_op(step, elements):
    table = problems.table(step + 1, stochastic=True)
    cpu = problems.state(table, 3, elements)
    cpu.seed.copy_(torch.tensor([7, -1, -(2**63) + 5]))
    cpu.latents.zero_()
    cpu.rows[:, :10], cpu.rows[:, 3] = 0, 1
    cpu.progress[0] = step
    one = on_triton(cpu)
    for state in (cpu, one):
        state.step(True)
    assert torch.equal(one.current().view(torch.int32), cpu.current().view(torch.int32))
    assert one.current().std() > 0.5


def test_noise_given_by_the_caller_is_what_is_added():
    table = problems.table(4, 2, stochastic=True)
    cpu = problems.state(table, 2, 1100)
    cpu.noise = torch.randn(4, 2, 1100)
    cpu.model_output.copy_(problems.outputs(cpu, 0))
    one = on_triton(cpu)
    for state in (cpu, one):
        state.step(True)
    assert_same(one, cpu, rtol=1e-5)


@pytest.mark.parametrize("rule", ["defect", "third_order linear repair"])
def test_an_output_that_a_fill_does_not_use_may_be_anything(rule):
    table = problems.table(12, 2)
    clean = on_triton(problems.state(table, 2, 30, problems.config(rule, table, 1e9)))
    while int(clean.nfe.min()) < 4:
        clean.model_output.copy_(problems.outputs(clean, int(clean.index.sum())))
        clean.advance()
    sick = on_triton(clean)
    sick.outputs[(clean.nfe[0] - 3) % 3] = torch.nan  # E_2
    output = problems.outputs(clean, 7)
    for state in (clean, sick):
        state.model_output.copy_(output)
        state.advance()
    assert clean.nfe[0] == 5 and bool(clean.current().isfinite().all())
    assert torch.equal(clean.current(), sick.current())


@pytest.mark.parametrize("criterion", ["third_order", "released", "defect"])
def test_nan_in_one_sample_refreshes_it_and_leaves_the_others(criterion):
    table = problems.table(9)
    state = problems.state(table, 3, 30, AdaptiveConfig(1e9, 3, criterion))
    assert_nan_stays_in_its_sample(on_triton(state))


@settings(max_examples=12)
@given(
    rule=st.sampled_from(RULES),
    max_skip=st.integers(1, 6),
    stages=st.sampled_from([1, 2]),
    batch=st.integers(0, 3),
    elements=st.sampled_from([0, 33, 33]),
    granularity=st.sampled_from(["sample", "batch"]),
    seed=st.integers(0, 10**6),
)
def test_advance_is_step_repeated(rule, max_skip, stages, batch, elements, granularity, seed):
    table = problems.table(11, 2, stages, seed=seed)
    config = problems.config(rule, table, 0.4, max_skip, granularity, seed)
    one = on_triton(problems.state(table, batch, elements, config, seed=seed))
    many = on_triton(one)
    for tick in range(table.num_steps):
        for state in (one, many):
            state.model_output.copy_(problems.outputs(state, tick, seed))
        one.advance()
        many.step(True)
        while bool((many.progress[1] > 0).any()):
            many.step(False)
        assert_same(one, many)
    assert bool((one.index == table.num_steps).all())
    assert torch.equal(one.nfe, one.refreshed.sum(0).int())


@pytest.mark.parametrize("max_skip", [1, 3, 7])
def test_the_guard_of_released_wakes_late(max_skip):
    table = problems.table(20)
    cpu = problems.state(table, 1, 20, problems.config("released", table, 1e9, max_skip))
    one = on_triton(cpu)
    while cpu.index.item() < 20:
        output = problems.outputs(cpu, cpu.index.item())
        for state in (cpu, one):
            state.model_output.copy_(output)
            state.advance()
        assert torch.equal(one.progress, cpu.progress)
    assert torch.equal(one.refreshed, cpu.refreshed)


@pytest.mark.parametrize("rule", ["third_order", "released", "defect"])
def test_a_tie_of_two_zeros_scores_one(rule):
    """Latents that stay as they are, and outputs that the fill predicts to the bit."""
    table = problems.table(8)
    state = on_triton(problems.state(table, 2, 20, problems.config(rule, table)))
    state.rows.zero_()
    state.rows[:, 2] = 1
    state.threshold.zero_()
    for _ in range(8):
        state.advance()
    assert bool(state.score.nan_to_num(1).eq(1).all())
    assert not bool(state.score[-1].isnan().any())


@pytest.mark.parametrize("rule", ["third_order", "released", "defect"])
def test_samples_that_wait_have_no_part_in_a_common_decision(rule):
    table = problems.table(12)
    config = problems.config(rule, table, 1e9, granularity="batch")
    state = on_triton(problems.state(table, 3, 50, config))
    while state.progress[1].max() == 0:
        state.model_output.copy_(problems.outputs(state, state.index[0].item()))
        state.step(True)
    state.progress[1, 1] = 0
    expected = problems.clone(state)
    state.step(False)
    reference.step(*expected.arguments(), False)
    assert state.index.tolist() == [state.index[0], state.index[0] - 1, state.index[0]]
    assert torch.allclose(state.norms, expected.norms)
    assert torch.allclose(state.score, expected.score, equal_nan=True)
    assert torch.equal(state.progress, expected.progress)


def test_sums_of_more_programs_than_are_added_at_a_time():
    table = problems.table(2)
    cpu = problems.state(table, 1, 257 * 1024, problems.config("released", table))
    cpu.model_output.copy_(problems.outputs(cpu, 0))
    one = on_triton(cpu)
    for state in (cpu, one):
        state.step(True)
    assert_same(one, cpu, rtol=1e-6)


def test_the_longest_skip_may_be_as_long_as_int64():
    table = problems.table(6)
    state = on_triton(problems.state(table, 1, 20, problems.config("third_order", table, 1e9)))
    state.rule = (state.rule[0], 2**63 - 1, *state.rule[2:])
    for tick in range(6):
        state.model_output.copy_(problems.outputs(state, tick))
        state.advance()
    assert state.index.item() == 6 and state.nfe.item() == 3


@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_a_result_depends_neither_on_the_batch_nor_on_what_ran_before(rule):
    table = problems.table(5, 3, stochastic=True)
    config = problems.config(rule, table, 0.5)
    together = on_triton(problems.state(table, 3, 2500, config))
    again, alone = on_triton(together), on_triton(together)
    again.workspace = together.workspace
    for name in ("latents", "history", "outputs", "progress", "refreshed", "score"):
        if (value := getattr(alone, name)) is not None:
            setattr(alone, name, value[:, 1:2].clone())
    for name in ("norms", "guidance_scale", "threshold", "seed", "workspace"):
        setattr(alone, name, getattr(alone, name)[1:2].clone())
    for name in ("model_input", "model_output", "timestep"):
        setattr(alone, name, getattr(alone, name)[1:2].clone())
    outputs = [problems.outputs(together, tick) for tick in range(5)]
    for state, rows in ((together, [0, 1, 2]), (again, [0, 1, 2]), (alone, [1])):
        for output in outputs:
            state.model_output.copy_(output[rows])
            state.advance()
            assert not counters(state).any()
    assert_same(again, together)
    assert torch.equal(alone.progress[:, 0], together.progress[:, 1])
    assert torch.equal(alone.current()[0], together.current()[1])
    assert torch.equal(alone.norms[0], together.norms[1])


@pytest.mark.parametrize("elements", [1, 1025])
def test_nothing_outside_the_buffers_is_touched(elements):
    """Every written buffer stands between sentinels in one allocation, off 16-byte boundaries."""
    table = problems.table(4, 3)
    config = problems.config("defect", table)
    cpu = problems.state(table, 2, elements, config, guided=True, dtype=torch.float16)
    state, guards = on_triton(cpu), []
    for name in NAMES[: NAMES.index("model_output")]:
        value = getattr(state, name)
        room = torch.full((value.numel() + 66,), 77, dtype=torch.uint8).to(value.dtype)
        inside = room[33 : 33 + value.numel()].view(value.shape)
        inside.copy_(value)
        setattr(state, name, inside)
        guards.append((room, room[:33].clone(), room[-33:].clone()))
    for tick in range(4):
        output = problems.outputs(cpu, tick)
        for one in (cpu, state):
            one.model_output.copy_(output)
            one.advance()
    assert_same(state, cpu, rtol=1e-5)
    for room, head, tail in guards:
        assert torch.equal(room[:33], head)
        assert torch.equal(room[-33:], tail)


def ready(rule="defect"):
    table = problems.table(8, 2)
    state = problems.state(table, 2, 40, problems.config(rule, table), guided=True)
    state.noise = torch.zeros(8, 2, 40)
    return dict(zip(NAMES, (*on_triton(state).arguments(), True), strict=False))


def refusal(op, arguments):
    with pytest.raises(RuntimeError) as caught:
        op(*arguments.values())
    # The compiled library says first where in its sources it stands.
    return re.sub(r"^\w+, \S*csrc/\S+:\d+, ", "", str(caught.value).splitlines()[0])


@pytest.mark.parametrize("name", NAMES[: NAMES.index("criterion")])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to(torch.int32 if t.dtype != torch.int32 else torch.int64),
        lambda t: t.to(torch.float64 if t.dtype != torch.float64 else torch.float32),
        lambda t: t.new_zeros([size + 1 for size in t.shape]),
        lambda t: t.new_zeros([*t.shape, 1]),
        lambda t: t[:0],
        lambda t: t.new_zeros([2 * size for size in t.shape])[
            tuple([slice(None, None, 2)] * t.dim())
        ],
    ],
    ids=["other integer", "other float", "larger", "one more dimension", "empty", "strided"],
)
def test_a_wrong_tensor_is_refused_in_the_words_of_the_compiled_library(name, change):
    arguments = ready()
    arguments[name] = change(arguments[name])
    assert refusal(triton_kernels.step, arguments) == refusal(ops.step, arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("criterion", 6),
        ("criterion", -1),
        ("max_skip", -1),
        ("warmup", 2),
        ("stages", 0),
        ("stages", 2),
        ("outputs", None),
        ("weights", None),
        ("run_cost", None),
    ],
)
def test_a_wrong_rule_is_refused_in_the_words_of_the_compiled_library(name, value):
    arguments = ready()
    arguments[name] = value
    assert refusal(triton_kernels.step, arguments) == refusal(ops.step, arguments)


def test_shared_memory_is_refused_in_the_words_of_the_compiled_library():
    for name, other, view in (
        ("model_output", "model_input", lambda t: t),
        ("outputs", "latents", lambda t: t[:3]),
        ("threshold", "score", lambda t: t[1]),
    ):
        arguments = ready()
        arguments[name] = view(arguments[other])
        assert refusal(triton_kernels.step, arguments) == refusal(ops.step, arguments)
    arguments = ready()
    arguments["guidance_scale"] = arguments["threshold"]  # what is only read may be shared
    triton_kernels._check(arguments)


def test_what_the_cpu_op_need_not_refuse():
    arguments = ready()
    arguments["workspace"] = None
    message = "workspace must have shape [B, P, 16] with P > 1, got None"
    assert refusal(triton_kernels.step, arguments) == message
    arguments = ready()
    arguments["seed"] = arguments["seed"].to("meta")
    message = "seed must be on cpu as latents is, got meta"
    assert refusal(triton_kernels.step, arguments) == message
    arguments = {**ready(), "condition": 0}
    assert refusal(triton_kernels.step, arguments) == "condition needs the CUDA library"
    del arguments["fresh"]
    assert refusal(triton_kernels.advance, arguments) == "condition needs the CUDA library"
    with pytest.raises(TypeError, match="the arguments are latents, history"):
        triton_kernels.step(*ready().values(), None, 1)
    with pytest.raises(TypeError, match="the arguments are latents, history"):
        triton_kernels.step(arguments["latents"])


def test_without_triton_the_module_imports_and_says_why(monkeypatch):
    assert triton_kernels.available() == (True, f"Triton {triton.__version__}")
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location(
        "adaptive_kernels.ops.triton.without_triton", triton_kernels.__file__
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    there, why = module.available()
    assert not there
    assert why.startswith("Triton cannot be imported: ")
