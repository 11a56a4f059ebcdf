"""The CUDA kernels, run by the emulation: what they compute, in any order of blocks and threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_kernels.ops import reference
from adaptive_kernels.rules.config import AdaptiveConfig
from adaptive_kernels.sampling.state import State
from tests.support import problems
from tests.support.agreement import (
    ANY_STEP,
    DTYPES,
    RULES,
    assert_nan_stays_in_its_sample,
    assert_step_agrees,
    rows_of,
)
from tests.support.emulation import emulated

pytestmark = pytest.mark.skipif(not emulated.compiler(), reason="needs a C++ compiler")
# Pieces are 2048 elements; rows of a multiple of 8 are moved 16 bytes at a time.
ALIGNED = [8, 16, 2048, 2056, 4096, 8200, 14344]
SIZES = [*ALIGNED, 1, 3, 17, 2049, 5001]
# Multiprocessors, and blocks on each: from a device that holds one block to one that holds all.
DEVICES = [(1, 1), (1, 2), (2, 2), (7, 7)]
# Shared memory of a multiprocessor: for no piece of a run, for one or two, for all.
SHARED = [8 << 10, 100 << 10, 227 << 10]
orders = st.sampled_from(["in order", "reversed", "random", "random"])


def assert_same(one, other, what=""):
    """Bit for bit the same, but for slots of the ring that no step reads again."""
    for name, a in vars(one).items():
        b = getattr(other, name)
        if name == "latents":
            a, b = problems.live(one), problems.live(other)
        if isinstance(a, torch.Tensor) and name != "workspace":
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), (what, name)


def assert_idle(state):
    """The workspace is ready for the next launch: every counter but the barrier's round is zero."""
    counters = state.workspace[:, 0].contiguous().view(torch.int32).view(len(state.workspace), -1)
    assert not bool(counters[:, [0, 1, 3, 4]].any()), counters[:, :6]
    # An error left behind would be raised by the next kernel of somebody else.
    assert emulated.counters()["error"] == 0


def sampled(state, seed=0, verb="advance"):
    """Samples to the end; yields after every tick."""
    tick = 0
    while bool((state.index < len(state.rows)).any()):
        state.model_output.copy_(problems.outputs(state, tick, seed))
        if verb == "advance":
            state.advance()
        else:
            state.step(True)
            while bool((state.progress[1] > 0).any()):
                state.step(False)
        tick += 1
        yield state


@settings(max_examples=120)
@given(
    **ANY_STEP | {"history": st.integers(1, 5), "batch": st.integers(1, 3)},
    elements=st.sampled_from(SIZES),
    device=st.sampled_from(DEVICES),
    order=orders,
)
def test_step_equals_reference_and_has_the_bits_of_the_cpu(
    rule,
    dtype,
    guided,
    history,
    stages,
    stochastic,
    batch,
    elements,
    granularity,
    device,
    order,
    seed,
):
    table = problems.table(7 if stages == 1 else 13, history, stages, stochastic, seed)
    config = problems.config(rule, table, 0.6, granularity=granularity, seed=seed)
    state = emulated.state(table, batch, elements, config, guided, dtype, seed)
    emulated.set_device(*device, order=order, seed=seed)
    while bool((state.index < table.num_steps).any()):
        state.model_output.copy_(problems.outputs(state, int(state.index.sum()), seed))
        for fresh in (True, False):
            cpu = problems.clone(State(**vars(state)))
            expected, _ = assert_step_agrees(state, fresh)
            atol = 1e-6 if rule == "defect" else 1e-8
            assert torch.allclose(state.norms, expected.norms, rtol=1e-4, atol=atol, equal_nan=True)
            assert_idle(state)
            cpu.step(fresh)
            # Sums are added in another order; all else is the same arithmetic.
            cpu.norms, cpu.score = state.norms, state.score
            assert_same(state, cpu)


@given(
    rule=st.sampled_from(RULES),
    batch=st.integers(1, 5),
    elements=st.sampled_from([8, 40, 300, 2056, 17]),
    history=st.integers(1, 3),
    verb=st.sampled_from(["step", "advance"]),
    order=orders,
    seed=st.integers(0, 10**6),
    fresh=st.booleans(),
)
def test_samples_at_different_steps(rule, batch, elements, history, verb, order, seed, fresh):
    """A batch in the middle of everything: other steps, runs, finished and impossible samples."""
    steps = 11
    table = problems.table(steps, history, seed=seed)
    config = problems.config(rule, table, threshold=0.5, max_skip=2, seed=seed)
    state = problems.midway(emulated.state(table, batch, elements, config, seed=seed), seed)
    emulated.set_device(2, 3, order=order, seed=seed)
    if verb == "step":
        before = problems.clone(state)
        assert_step_agrees(state, fresh)
        still = (before.index == steps) | ((before.progress[1] == 0) & (not fresh))
        assert torch.equal(state.progress[:, still], before.progress[:, still])
    else:
        expected = problems.clone(state)
        state.advance()
        # A run that goes on where a step left off may be as long as a whole one.
        expected.step(True)
        for _ in range(6):
            expected.step(False)
        assert_same(state, expected)
    assert_idle(state)
    wrong = problems.clone(state)
    wrong.progress[0, 0] = -1
    before = problems.clone(wrong)
    wrong.step(True)
    for name in ("latents", "progress", "outputs", "refreshed"):
        a, b = getattr(wrong, name), getattr(before, name)
        if a is not None:
            assert torch.equal(a[:, 0].nan_to_num(7), b[:, 0].nan_to_num(7))


@settings(max_examples=100)
@given(
    rule=st.sampled_from(RULES),
    threshold=st.sampled_from([0.3, 1.0, 3.0]),
    max_skip=st.integers(1, 9),
    stages=st.sampled_from([1, 1, 2]),
    history=st.integers(1, 4),
    stochastic=st.booleans(),
    batch=st.integers(0, 3),
    elements=st.sampled_from([*ALIGNED, 17]),
    guided=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    granularity=st.sampled_from(["sample", "sample", "batch"]),
    device=st.sampled_from(DEVICES),
    cooperative=st.sampled_from([True, True, False]),
    shared=st.sampled_from(SHARED),
    order=orders,
    seed=st.integers(0, 10**6),
)
def test_advance_is_step_repeated(
    rule,
    threshold,
    max_skip,
    stages,
    history,
    stochastic,
    batch,
    elements,
    guided,
    dtype,
    granularity,
    device,
    cooperative,
    shared,
    order,
    seed,
):
    """In one launch or in several, on a device of any size: the same bits everywhere."""
    table = problems.table(17, history, stages, stochastic, seed)
    config = problems.config(rule, table, threshold, max_skip, granularity, seed)
    one = emulated.state(table, batch, elements, config, guided, dtype, seed)
    many = problems.clone(one)
    emulated.set_device(*device, cooperative, order, seed, shared)
    for _ in zip(sampled(one, seed), sampled(many, seed, "step"), strict=True):
        assert_same(one, many)
        assert_idle(one)
    assert torch.equal(one.nfe, one.refreshed.sum(0).int())


def launches_of(config, history=1, elements=2056, stages=1, batch=2, device=(7, 7), **options):
    """(launches, cooperative ones) of an advance."""
    table = problems.table(16, history, stages)
    state = emulated.state(table, batch, elements, problems.config(config, table, 1.0, 4))
    emulated.set_device(*device, **options)
    state.model_output.copy_(problems.outputs(state, 0))
    state.advance()
    counted = emulated.counters()
    return counted["launches"], counted["cooperative"]


def test_a_run_is_one_launch_where_it_fits():
    for rule in ("third_order", "released", "defect", "third_order linear repair"):
        for history in (1, 2, 3):
            assert launches_of(rule, history) == (1, 1), rule
        # As long as each sample has a block, the grid need not hold every piece.
        assert launches_of(rule, device=(1, 2), elements=8200) == (1, 1)
        # Elsewhere `step`, five times (released: six).
        repeated = (6 if rule == "released" else 5, 0)
        assert launches_of(rule, history=4) == repeated
        assert launches_of(rule, elements=2057) == repeated
        assert launches_of(rule, cooperative=False) == repeated
        assert launches_of(rule, device=(1, 1)) == repeated
    # Without sums nothing waits for anything.
    assert launches_of("plan") == launches_of("every(3) linear", cooperative=False) == (1, 0)
    assert launches_of("defect", stages=2) == (1, 1)
    assert launches_of("third_order", stages=2)[0] == 10
    assert launches_of("never") == (1, 0)


@pytest.mark.parametrize("rule", ["third_order", "released", "defect", "plan"])
@pytest.mark.parametrize("granularity", ["sample", "batch"])
def test_every_schedule_and_device_gives_the_same_bits(rule, granularity):
    """Norms and scores included: sums are added in an order that only the sample's size decides."""
    table = problems.table(10, 3, stochastic=rule == "plan")
    config = problems.config(rule, table, 1.0, granularity=granularity)
    start = emulated.state(table, 2, 8200, config, guided=True, dtype=torch.bfloat16)
    expected = None
    schedules = [("in order", 0), ("reversed", 0), *(("random", seed) for seed in range(12))]
    for device, shared in [(device, SHARED[2]) for device in DEVICES] + [((1, 2), SHARED[1])]:
        for order, seed in schedules if device == DEVICES[1] else schedules[1:4]:
            emulated.set_device(*device, order=order, seed=seed, shared_memory=shared)
            state = problems.clone(start)
            for _ in sampled(state):
                pass
            expected = expected or state
            assert_same(state, expected, (device, order, seed))
    assert int(expected.nfe.max()) < 10


@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_a_sample_does_not_depend_on_its_batch(rule):
    table = problems.table(8, 2, stochastic=rule == "third_order")
    config = problems.config(rule, table, 1.0)
    together = emulated.state(table, 3, 4104, config, guided=True)
    alone = []
    for b in range(3):
        rows = torch.tensor([b, b + 3])
        picked = problems.clone(together)
        for name in ("latents", "history", "outputs", "progress", "refreshed", "score"):
            if (value := getattr(together, name)) is not None:
                setattr(picked, name, value[:, b : b + 1].clone())
        for name in ("norms", "guidance_scale", "threshold", "seed", "workspace"):
            setattr(picked, name, getattr(together, name)[b : b + 1].clone())
        for name in ("model_input", "model_output", "timestep"):
            setattr(picked, name, getattr(together, name)[rows].clone())
        alone.append(picked)
    emulated.set_device(2, 3)
    tick = 0
    while bool((together.index < 8).any()):
        together.model_output.copy_(problems.outputs(together, tick))
        for b, state in enumerate(alone):
            state.model_output.copy_(together.model_output[[b, b + 3]])
            state.advance()
        together.advance()
        tick += 1
        for b, state in enumerate(alone):
            assert torch.equal(state.progress[:, 0], together.progress[:, b])
            assert torch.equal(state.norms[0], together.norms[b])
            assert torch.equal(
                state.latents[:, 0].nan_to_num(7), together.latents[:, b].nan_to_num(7)
            )


@pytest.mark.parametrize("rule", ["third_order", "every(3) linear", "defect", "never"])
@pytest.mark.parametrize("elements", [2056, 33])
def test_the_condition_of_a_graph_ends_the_loop(rule, elements):
    """WHILE { network -> advance }: the value is 1 until no sample has a step to go."""
    table = problems.table(12)
    state = emulated.state(table, 3, elements, problems.config(rule, table, 1.0))
    state.progress[0, 2] = 12  # finished before it began
    handle, ticks, going_on = 2**40 + 7, 0, True
    while going_on:
        state.model_output.copy_(problems.outputs(state, ticks))
        emulated.set_device(2, 2, seed=ticks)
        state.advance(condition=handle)
        counters = emulated.counters()
        assert counters["condition_calls"] == counters["launches"]
        assert counters["condition"] == handle
        going_on = bool(counters["value"])
        assert going_on == bool((state.index < 12).any())
        ticks += 1
        assert_idle(state)
    assert ticks == state.nfe.max()
    state.progress[0, 0] = -5  # such a sample never moves and must not keep the loop going
    state.advance(condition=handle)
    assert emulated.counters()["value"] == 0


def test_nothing_outside_the_buffers_is_touched():
    table = problems.table(6, 3)
    config = problems.config("defect", table)
    for elements in (1, 7, 8, 2049, 2056):
        state = emulated.state(table, 2, elements, config, guided=True, dtype=torch.float16)
        emulated.set_device(2, 2)
        guards = []
        for name in (
            *("latents", "history", "model_input", "timestep", "progress", "norms"),
            *("refreshed", "score", "outputs", "workspace"),
        ):
            value = getattr(state, name)
            fill = 77 if name != "workspace" else 0
            room = torch.full((value.numel() + 64,), fill, dtype=torch.uint8).to(value.dtype)
            inside = room[32 : 32 + value.numel()].view(value.shape)
            inside.copy_(value)
            setattr(state, name, inside)
            guards.append((room, room[:32].clone(), room[-32:].clone()))
        for _ in sampled(state):
            pass
        for room, head, tail in guards:
            assert torch.equal(room[:32], head)
            assert torch.equal(room[-32:], tail)


def test_nan_in_one_sample_refreshes_it_and_leaves_the_others():
    table = problems.table(12)
    for criterion in ("third_order", "released", "defect"):
        emulated.set_device(2, 2)
        clean = emulated.state(table, 3, 64, AdaptiveConfig(1e9, 3, criterion))
        assert_nan_stays_in_its_sample(clean)


def test_rows_that_do_not_stand_on_16_bytes_are_moved_one_by_one():
    table = problems.table(6, 2)
    for name in ("latents", "model_output", "model_input", "history"):
        right = emulated.state(table, 2, 64, dtype=torch.bfloat16)
        shifted = problems.clone(right)
        value = getattr(shifted, name)
        room = torch.zeros(value.numel() + 1, dtype=value.dtype)
        setattr(shifted, name, room[1:].view(value.shape).copy_(value))
        assert getattr(shifted, name).data_ptr() % 16
        emulated.set_device(2, 2)
        for _ in zip(sampled(right), sampled(shifted), strict=True):
            assert_same(right, shifted)


def test_noise_given_by_the_caller_is_added():
    table = problems.table(5, 2, stochastic=True)
    for elements in (24, 21):
        state = emulated.state(table, 2, elements)
        state.noise = torch.randn(5, 2, elements)
        cpu = problems.clone(State(**vars(state)))
        emulated.set_device(2, 2)
        for _ in zip(sampled(state), sampled(cpu), strict=True):
            assert torch.equal(state.current(), cpu.current())


def test_a_run_begun_at_a_first_stage_comes_to_its_end():
    table = problems.table(12, stages=2)
    for rule in ("never", "every(2)", "every(3) linear"):
        state = emulated.state(table, 1, 40, problems.config(rule, table))
        cpu = problems.clone(State(**vars(state)))
        # Between a whole step's stages, on an output that serves both.
        for buffers in (state, cpu):
            buffers.latents.nan_to_num_(0.5)
            if buffers.outputs is not None:
                buffers.outputs.nan_to_num_(0.5)
            buffers.progress[:, 0] = torch.tensor([4, 1, 3, 3, 2])
            buffers.advance()
        assert int(state.progress[1]) == 0
        assert_same(state, cpu)
        again = problems.clone(cpu)
        again.progress[:, 0] = torch.tensor([4, 1, 3, 3, 2])
        reference.advance(*again.arguments())
        assert torch.equal(again.progress, state.progress)


def test_a_launch_that_leaves_no_samples_cannot_end_a_loop():
    state = emulated.state(problems.table(6), 0, 40)
    state.advance()
    with pytest.raises(RuntimeError, match="condition needs at least one sample"):
        state.advance(condition=7)


def test_stages_beyond_the_ring_are_refused():
    for stages in (2, 2**62, 6148914691236517205):
        state = emulated.state(problems.table(6), 1, 40)
        state.rule = (*state.rule[:3], stages)
        for verb in (state.advance, State(**vars(state)).advance):
            with pytest.raises(RuntimeError, match="latents must hold at least"):
                verb()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "workspace must be given on a GPU"),
        (torch.zeros(2, 1, 16).double(), r"workspace must have shape \[B, P, 16\] with P > 1"),
        (torch.zeros(2, 16).double(), r"workspace must have shape \[B, P, 16\] with P > 1"),
        (torch.zeros(1, 2, 16).double(), r"workspace must have shape \(2, 2, 16\)"),
        (torch.zeros(2, 2, 16), "workspace must be float64, got float32"),
    ],
)
def test_a_wrong_workspace_is_refused(value, message):
    state = emulated.state(problems.table(6), 2, 40)
    state.workspace = value
    with pytest.raises(RuntimeError, match=message):
        state.advance()


def test_a_workspace_may_be_larger_than_needed():
    table = problems.table(6)
    exact = emulated.state(table, 2, 2056)
    large = problems.clone(exact)
    large.workspace = torch.zeros(2, 9, 16, dtype=torch.float64)
    emulated.set_device(2, 2)
    for _ in zip(sampled(exact), sampled(large), strict=True):
        assert_same(exact, large)


def runtime(name):
    """Path of a runtime library of the compiler; None where it is not installed."""
    said = subprocess.run(
        [emulated.compiler(), f"-print-file-name={name}"], capture_output=True, text=True
    ).stdout.strip()
    return said if Path(said).is_absolute() else None


def test_memory_is_clean_under_the_sanitizers():
    """Every kernel in a process of its own under ASan and UBSan, each buffer its own allocation."""
    preload = [runtime("libasan.so"), runtime("libstdc++.so.6")]
    if None in preload:
        pytest.skip("needs the runtimes of AddressSanitizer")
    got = subprocess.run(
        [sys.executable, "-m", "tests.support.emulation.sanitized"],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "LD_PRELOAD": " ".join(preload),
            "ASAN_OPTIONS": "detect_leaks=0,detect_odr_violation=0",
            "PYTHONMALLOC": "malloc",
        },
    )
    assert got.returncode == 0, got.stdout[-3000:] + got.stderr[-6000:]
    assert "an overrun is found" in got.stdout


def test_reference_is_what_a_step_is_compared_with():
    """The comparison above fails where it should: one element is off by a millionth."""
    state = emulated.state(problems.table(6), 2, 40)
    emulated.set_device(2, 2)
    state.model_output.copy_(problems.outputs(state, 0))
    expected = problems.clone(state)
    bound = problems.update_bound(state, True)
    state.step(True)
    reference.step(*expected.arguments(), True)
    moved = rows_of(state.index > 0, state)[:2]
    error = (state.latents[1].double() + 1e-5 - expected.latents[1].double()).abs()
    assert bool((error > bound)[moved].any())
