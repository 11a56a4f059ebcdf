"""On an NVIDIA GPU: every run the same, inside graphs and beside others, and no synchronisation.

tests/ops/test_contract.py says that the device's elements have the CPU's bits, among what it claims
of all implementations.
"""

import functools
import time

import pytest
import torch

from adaptive_kernels import AdaptiveConfig, ops
from tests.support import problems
from tests.support.agreement import RULES
from tests.support.implementations import CUDA, TRITON, of_each
from tests.support.problems import assert_same

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
on_both = of_each([CUDA, TRITON])


def test_the_compiled_library_serves_cuda():
    assert ops.implementation("cuda")[0] == "compiled CUDA", ops.implementation("cuda")[1]


@on_both
@pytest.mark.parametrize("rule", RULES)
def test_advance_is_step_repeated(implementation, rule):
    """Held in registers, read again, too large for one launch, not on 16 bytes: the same bits."""
    # On chip at once; more samples than that; more of one than fits; many small ones; not on 16
    # bytes; a long history; a run of nine.
    shapes = [(1, 65536), (70, 20480), (1, 2_000_008), (1, 8_000_000), (300, 2048), (3, 4099)]
    cases = [(*shape, 2, 4) for shape in shapes] + [(2, 4096, 4, 4), (2, 4096, 2, 9)]
    # Without noise and history, where more samples go through smaller blocks; and two large ones.
    cases += [(*shape, 1, 4) for shape in (*shapes[:4], (64, 65536), (2, 4_838_400))]
    for batch, elements, history, max_skip in cases:
        noisy = history > 1 and "repair" not in rule
        table = problems.table(11, history, stochastic=noisy)
        config = problems.config(rule, table, 0.6, max_skip)
        one = implementation.state(problems.state(table, batch, elements, config))
        if history == 4:
            one.noise = torch.randn(11, batch, elements, device=DEVICE)
        many = one.clone()
        for tick in range(4):
            one.model_output.copy_(problems.outputs(one, tick))
            many.model_output.copy_(one.model_output)
            one.advance()
            many.step(True)
            for _ in range(10):
                many.step(False)
            assert_same(one, many)


@on_both
def test_more_than_two_to_the_31_elements(implementation):
    """Offsets are 64 bits: the last elements of a huge sample have the bits of a small one."""
    elements, last = 2**29 + 4096, 4096
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GB of free device memory")
    table = problems.table(6, 2)
    config = AdaptiveConfig(max_skip=1, criterion="every(2)")
    small = implementation.state(problems.state(table, 1, last, config, dtype=torch.bfloat16))
    huge = small.clone()
    for name in ("latents", "history", "model_input", "model_output"):
        part = getattr(small, name)
        whole = torch.zeros(*part.shape[:-1], elements, dtype=part.dtype, device=DEVICE)
        whole[..., -last:] = part
        setattr(huge, name, whole)
    huge.workspace = torch.zeros(
        ops.workspace_shape(1, elements), dtype=torch.float64, device=DEVICE
    )
    assert huge.latents.numel() > 2**31
    for tick in range(3):
        small.model_output.copy_(problems.outputs(small, tick))
        huge.model_output[:, -last:] = small.model_output
        small.advance()
        huge.advance()
        assert torch.equal(small.progress, huge.progress)
        assert torch.equal(small.model_input, huge.model_input[:, -last:])
        assert torch.equal(problems.live(small), problems.live(huge)[..., -last:])


def three(state):
    for _ in range(3):
        state.advance()
    return state


def start(rule, implementation, elements=70008, batch=4):
    table = problems.table(10, 2)
    config = problems.config(rule, table, 0.6)
    state = implementation.state(problems.state(table, batch, elements, config, True))
    state.model_output.normal_(generator=torch.Generator(DEVICE).manual_seed(0))
    return state


@on_both
@pytest.mark.parametrize("rule", ["third_order", "released", "defect"])
def test_bitwise_the_same_in_a_hundred_runs_and_inside_a_graph(implementation, rule):
    state = start(rule, implementation)
    first = three(state.clone())
    for _ in range(99):
        assert_same(first, three(state.clone()))
    captured = state.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        three(captured)
    graph.replay()
    assert_same(first, captured)


@on_both
@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_two_streams_and_two_threads(implementation, rule):
    """States have their own workspace: what runs beside them does not change a bit."""
    states = [start(rule, implementation, elements) for elements in (70008, 4104)]
    expected = [three(one.clone()) for one in states]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in states]
    for _ in range(20):
        both = [one.clone() for one in states]
        torch.cuda.synchronize()
        for _ in range(3):
            for one, stream in zip(both, streams, strict=True):
                with torch.cuda.stream(stream):
                    one.advance()
        torch.cuda.synchronize()
        for one, right in zip(both, expected, strict=True):
            assert_same(one, right)

    def run(one, stream, right):
        with torch.cuda.stream(stream):
            for _ in range(20):
                fresh = one.clone()
                three(fresh)
                stream.synchronize()
                assert_same(fresh, right)

    problems.together(
        *(functools.partial(run, *job) for job in zip(states, streams, expected, strict=True))
    )


@on_both
@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_launches_that_want_the_whole_gpu_come_to_their_end_beside_others(implementation, rule):
    """Blocks of one launch wait for each other: those of another stream must not keep them out."""
    states = [
        start(rule, implementation, elements, batch)
        for elements, batch in ((4_838_400, 1), (2_000_008, 2), (65536, 1))
    ]

    def work(one):
        for verb in (one.advance, lambda: one.step(True), one.advance):
            verb()

    expected = [one.clone() for one in states]
    for one in expected:
        work(one)
    streams, ends = [torch.cuda.Stream() for _ in states], []
    for _ in range(30):
        beside = [one.clone() for one in states]
        torch.cuda.synchronize()
        for one, stream in zip(beside, streams, strict=True):
            with torch.cuda.stream(stream):
                work(one)
                ends.append(stream.record_event())
        deadline = time.monotonic() + 60
        while not all(end.query() for end in ends):
            assert time.monotonic() < deadline, "launches of several streams wait for each other"
        for one, right in zip(beside, expected, strict=True):
            assert_same(one, right)


@on_both
@pytest.mark.parametrize("rule", ["third_order", "defect", "plan"])
def test_nothing_synchronises(implementation, rule):
    state = start(rule, implementation, 5000)
    three(state.clone())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            state.advance()
            state.step(True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_both
def test_a_whole_sampling_never_synchronises(implementation):
    """Network and advance until the last sample ends; finished samples stand still meanwhile."""
    table = problems.table(12, 2)
    config = problems.config("defect", table, 1.0)
    state = implementation.state(problems.state(table, 3, 4096, config))
    expected = state.clone()
    network = torch.nn.Linear(4096, 4096).to(DEVICE).requires_grad_(False)
    network(state.model_input)

    def sample(state):
        for _ in range(12):
            state.model_output.copy_(network(state.model_input))
            state.advance()

    sample(expected)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample(state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.index.tolist() == [12, 12, 12]
    assert int(state.nfe.max()) < 12
    assert_same(state, expected)


@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_opcheck(rule):
    state = CUDA.state(problems.ready(rule, guided=True))
    torch.library.opcheck(ops.step, (*state.arguments(), True))
    torch.library.opcheck(ops.advance, state.arguments())


@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_a_compiled_network_with_step_has_no_graph_break(rule, mode):
    torch.compiler.reset()
    torch.manual_seed(0)
    network = torch.nn.Linear(40, 40).to(DEVICE).requires_grad_(False)
    eager = CUDA.state(problems.ready(rule, 2.0))
    compiled = eager.clone()

    def tick(state):
        state.model_output.copy_(network(state.model_input).tanh())
        state.advance()

    compiled_tick = torch.compile(tick, fullgraph=True, mode=mode)
    for _ in range(4):
        tick(eager)
        compiled_tick(compiled)
    assert torch.equal(eager.progress, compiled.progress)
    assert (eager.current() - compiled.current()).abs().max() <= 1e-3  # TF32 or another matmul


def test_tensors_of_another_device_are_refused_by_name():
    state = CUDA.state(problems.state(problems.table(10, 2), 2, 50))
    state.threshold = state.threshold.cpu()
    with pytest.raises(RuntimeError, match="threshold must be on cuda:0 as latents is"):
        state.advance()
    for name in ("outputs", "weights", "rule_table", "workspace"):
        state = CUDA.state(
            problems.state(problems.table(10, 2), 2, 50, AdaptiveConfig(criterion="defect"))
        )
        setattr(state, name, getattr(state, name).cpu())
        with pytest.raises(RuntimeError, match=f"{name} must be on cuda:0 as latents is"):
            state.advance()
    state = CUDA.state(problems.state(problems.table(10, 2), 2, 50))
    state.workspace = None
    with pytest.raises(RuntimeError, match="workspace must be given on a GPU"):
        state.advance()
