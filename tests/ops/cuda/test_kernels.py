"""What is true of the CUDA kernels alone, run by the emulation: launches, schedules, conditions.

tests/ops/test_contract.py has what they share with all implementations.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adaptive_kernels.ops import reference
from tests.support import problems
from tests.support.emulation import emulated
from tests.support.implementations import DEVICES, EMULATED, SHARED
from tests.support.problems import assert_same

pytestmark = pytest.mark.skipif(not emulated.compiler(), reason="needs a C++ compiler")


def assert_idle(state):
    """The workspace is ready for the next launch: every counter is zero."""
    counters = state.workspace[:, 0].contiguous().view(torch.int32).view(len(state.workspace), -1)
    assert not bool(counters[:, [0, 1, 3]].any()), counters[:, :6]
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
            while bool((state.run > 0).any()):
                state.step(False)
        tick += 1
        yield state


def launches_of(config, history=1, elements=2056, stages=1, batch=2, device=(7, 7), **options):
    """(launches, cooperative ones) of an advance."""
    table = problems.table(16, history, stages)
    state = EMULATED.begun(table, batch, elements, problems.config(config, table, 1.0, 4))
    emulated.set_device(*device, **options)
    state.model_output.copy_(problems.outputs(state, 0))
    state.advance()
    counted = emulated.counters()
    return counted["launches"], counted["cooperative"]


def test_a_run_is_one_launch_where_it_fits():
    for rule in ("third_order", "released", "defect", "third_order linear repair"):
        for history in (1, 2, 3):
            assert launches_of(rule, history) == (1, 1), rule
        # The grid need not hold every piece, nor every sample.
        assert launches_of(rule, device=(1, 2), elements=8200) == (1, 1)
        assert launches_of(rule, device=(1, 1)) == (1, 1)
        # Elsewhere `step`, five times (released: six): together where the whole batch is there at
        # once and rows are regular.
        steps = 6 if rule == "released" else 5
        together = steps if rule != "third_order linear repair" else 0  # seldom asked for
        assert launches_of(rule, history=4) == (steps, together)
        assert launches_of(rule, history=4, device=(1, 5)) == (steps, 0)
        assert launches_of(rule, elements=2057) == (steps, 0)
        assert launches_of(rule, cooperative=False) == (steps, 0)
        assert launches_of(rule, shared_memory=8 << 10) == (steps, together)
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
    start = EMULATED.begun(table, 2, 8200, config, guided=True, dtype=torch.bfloat16)
    expected = None
    schedules = [("in order", 0), ("reversed", 0), *(("random", seed) for seed in range(12))]
    for device, shared in [(device, SHARED[2]) for device in DEVICES] + [((1, 2), SHARED[1])]:
        for order, seed in schedules if device == DEVICES[1] else schedules[1:4]:
            emulated.set_device(*device, order=order, seed=seed, shared_memory=shared)
            state = start.clone()
            for _ in sampled(state):
                pass
            expected = expected or state
            assert_same(state, expected, what=(device, order, seed))
    assert int(expected.nfe.max()) < 10


@pytest.mark.parametrize("rule", ["third_order", "released", "defect"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_more_samples_than_run_at_once_have_the_bits_of_one_alone(rule, dtype):
    """Blocks go from sample to sample, some of which wait for nothing or have run to their end."""
    table = problems.table(10)
    config = problems.config(rule, table, 1.0)
    many = EMULATED.begun(table, 9, 4104, config, guided=True, dtype=dtype)
    many.index[3], many.index[7] = 10, -1
    # The rule by its measure skips where that is small.
    many.threshold.copy_(torch.logspace(-3, 0.5, 9))
    alone = many.clone()
    for tick in range(6):
        output = problems.outputs(many, tick)
        many.model_output.copy_(output)
        alone.model_output.copy_(output)
        emulated.set_device(2, 2, order="random", seed=tick)
        many.advance()
        assert emulated.counters()["launches"] == 1
        emulated.set_device(40, 8, order="in order", cooperative=False)
        alone.step(True)
        for _ in range(6):
            alone.step(False)
        assert_same(many, alone)
        assert_idle(many)
    assert len(set(many.nfe.tolist())) > 2, many.nfe


@pytest.mark.parametrize("rule", ["third_order", "every(3) linear", "defect", "never"])
@pytest.mark.parametrize("elements", [2056, 33])
def test_the_condition_of_a_graph_ends_the_loop(rule, elements):
    """WHILE { network -> advance }: the value is 1 until no sample has a step to go."""
    table = problems.table(12)
    state = EMULATED.begun(table, 3, elements, problems.config(rule, table, 1.0))
    state.index[2] = 12  # finished before it began
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
    state.index[0] = -5  # such a sample never moves and must not keep the loop going
    state.advance(condition=handle)
    assert emulated.counters()["value"] == 0


@pytest.mark.parametrize("rule", ["third_order", "released", "defect"])
@pytest.mark.parametrize("elements", [256 * 1024 + 8, 600_000])
def test_large_samples_send_their_sums_in_pairs(rule, elements):
    """`step`, and `advance` on few blocks and on many: one order of sums."""
    table = problems.table(8)
    start = EMULATED.begun(table, 1, elements, problems.config(rule, table, 1.0))
    states = [start, start.clone(), start.clone(), problems.elsewhere(start)]
    devices = [(7, 2), (7, 2), (10, 3)]
    for tick in range(5):
        output = problems.outputs(start, tick)
        for k, state in enumerate(states):
            state.model_output.copy_(output)
            if k < 3:
                emulated.set_device(*devices[k], order="in order")
            if k == 0:
                state.step(True)
                for _ in range(5):
                    state.step(False)
            else:
                state.advance()
        assert_same(states[1], start)
        assert_same(states[2], start)
        assert torch.equal(states[3].progress, start.progress)
        assert torch.equal(states[3].current(), start.current())
        torch.testing.assert_close(states[3].measures, start.measures, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rule", ["third_order", "released", "defect", "plan"])
def test_what_a_workspace_held_neither_hangs_a_launch_nor_counts(rule):
    """Messages of other launches, or anything: a message is known by its launch's number."""
    table = problems.table(10)
    right = EMULATED.begun(table, 2, 8200, problems.config(rule, table, 1.0))
    dirty = right.clone()
    bits = torch.randint(-(2**62), 2**62, dirty.workspace.shape)
    dirty.workspace.copy_(bits.view(torch.float64))
    dirty.workspace.view(torch.int32).view(2, -1)[:, [0, 1, 3]] = 0  # counters
    emulated.set_device(2, 2, seed=5)
    for verb in ("advance", "step"):
        a, b = right.clone(), dirty.clone()
        for _ in zip(sampled(a, verb=verb), sampled(b, verb=verb), strict=True):
            assert_same(a, b)
    # With counters too no decision may come, but every launch ends.
    dirty.workspace.copy_(bits.view(torch.float64))
    dirty.model_output.copy_(problems.outputs(dirty, 0))
    dirty.advance()
    dirty.step(True)


def test_a_network_that_reads_another_dtype_than_it_writes():
    table = problems.table(8, 2)
    for rule in ("third_order", "defect", "plan"):
        state = EMULATED.begun(table, 2, 2056, problems.config(rule, table, 1.0))
        state.model_output = state.model_output.bfloat16()
        cpu = problems.elsewhere(state)
        emulated.set_device(2, 2)
        for _ in zip(sampled(state), sampled(cpu), strict=True):
            assert_same(state, cpu, ("measures", "score"))


def test_a_ring_too_deep_to_find_a_slot_by_a_product():
    table = problems.table(8)
    state = EMULATED.begun(table, 1, 40)
    # Steps times slots beyond 2^32: slots are found by a division.
    deep = torch.zeros(2**20, 1, 40)
    state.latents, shallow = deep, state.clone()
    deep[0] = shallow.latents[0]
    rows = state.rows.repeat(600, 1)
    assert len(rows) * len(deep) > 2**32
    for one in (state, shallow):
        one.rows = rows
        one.refreshed, one.score = torch.zeros(4800, 1).bool(), torch.zeros(4800, 1)
        one.progress[0] = 4000
        one.latents[4000 % len(one.latents)] = 0.5
        one.model_output.fill_(0.25)
        one.step(True)
    assert torch.equal(deep[4001], shallow.latents[4001 % len(shallow.latents)])


def test_a_step_in_a_loop_is_an_ordinary_launch():
    """A body may take no cooperative one; `step` is what serves there then."""
    table = problems.table(12)
    state = EMULATED.begun(table, 2, 2056, problems.config("third_order", table, 1.0))
    for condition, cooperative in ((None, 1), (7, 0)):
        state.model_output.copy_(problems.outputs(state, 0))
        emulated.set_device(7, 7)
        state.step(True, condition=condition)
        assert emulated.counters()["cooperative"] == cooperative


def test_rows_that_do_not_stand_on_16_bytes_are_moved_one_by_one():
    table = problems.table(6, 2)
    for name in ("latents", "model_output", "model_input", "history"):
        right = EMULATED.begun(table, 2, 64, dtype=torch.bfloat16)
        shifted = right.clone()
        value = getattr(shifted, name)
        room = torch.zeros(value.numel() + 1, dtype=value.dtype)
        setattr(shifted, name, room[1:].view(value.shape).copy_(value))
        assert getattr(shifted, name).data_ptr() % 16
        emulated.set_device(2, 2)
        for _ in zip(sampled(right), sampled(shifted), strict=True):
            assert_same(right, shifted)


def test_a_run_begun_at_a_first_stage_comes_to_its_end():
    table = problems.table(12, stages=2)
    for rule in ("never", "every(2)", "every(3) linear"):
        state = EMULATED.begun(table, 1, 40, problems.config(rule, table))
        cpu = problems.elsewhere(state)
        # Between a whole step's stages, on an output that serves both.
        for buffers in (state, cpu):
            buffers.latents.nan_to_num_(0.5)
            if buffers.outputs is not None:
                buffers.outputs.nan_to_num_(0.5)
            buffers.progress[:, 0] = torch.tensor([4, 1, 3, 3, 2])
            buffers.advance()
        assert int(state.run) == 0
        assert_same(state, cpu)
        again = cpu.clone()
        again.progress[:, 0] = torch.tensor([4, 1, 3, 3, 2])
        reference.advance(*again.arguments())
        assert torch.equal(again.progress, state.progress)


def test_a_launch_that_leaves_no_samples_cannot_end_a_loop():
    state = EMULATED.begun(problems.table(6), 0, 40)
    state.advance()
    with pytest.raises(RuntimeError, match="condition needs at least one sample"):
        state.advance(condition=7)


def test_stages_beyond_the_ring_are_refused():
    for stages in (2, 2**62, 6148914691236517205):
        state = EMULATED.begun(problems.table(6), 1, 40)
        problems.ruled(state, stages=stages)
        for verb in (state.advance, problems.elsewhere(state).advance):
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
        (
            torch.zeros(65).double()[1:].view(2, 2, 16),
            "workspace must begin on a boundary of 16 bytes",
        ),
    ],
)
def test_a_wrong_workspace_is_refused(value, message):
    state = EMULATED.begun(problems.table(6), 2, 40)
    state.workspace = value
    with pytest.raises(RuntimeError, match=message):
        state.advance()


def test_a_workspace_may_be_larger_than_needed():
    table = problems.table(6)
    exact = EMULATED.begun(table, 2, 2056)
    large = exact.clone()
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
