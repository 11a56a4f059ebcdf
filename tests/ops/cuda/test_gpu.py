"""On an NVIDIA GPU: CUDA and Triton have the CPU's bits, every run, and never synchronise.

The same claims are made of the kernels' sources without a GPU in test_kernels.py and
test_triton.py; this is the device itself.
"""

import functools

import pytest
import torch

from adaptive_kernels import AdaptiveConfig, ops
from adaptive_kernels.ops.triton import launch as triton_kernels
from adaptive_kernels.sampling.state import State
from tests.support import problems

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
RULES = [*problems.REUSE, *problems.FILLED]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class TritonState(State):
    """A state whose verbs are Triton's, whatever serves the device."""

    def step(self, fresh):
        triton_kernels.step(*self.arguments(), fresh)

    def advance(self):
        triton_kernels.advance(*self.arguments())


IMPLEMENTATIONS = {"CUDA": State, "Triton": TritonState}


@pytest.fixture(params=IMPLEMENTATIONS)
def cls(request):
    if request.param == "Triton" and not triton_kernels.available()[0]:
        pytest.skip(triton_kernels.available()[1])
    return IMPLEMENTATIONS[request.param]


def on_gpu(state, cls=State):
    moved = {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in vars(state).items()
    }
    shape = ops.workspace_shape(*state.latents.shape[1:])
    moved["workspace"] = torch.zeros(shape, dtype=torch.float64, device=DEVICE)
    return cls(**moved)


def assert_same(one, other, but=("workspace",)):
    """Bit for bit the same, but for slots of the ring that no step reads again."""
    for name, a in vars(one).items():
        b = getattr(other, name)
        if name == "latents":
            a, b = problems.live(one), problems.live(other)
        if isinstance(a, torch.Tensor) and name not in but:
            b = b.to(a.device)
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), name


def fed(state, tick):
    """Writes the network stand-in's output; `of` and its copies elsewhere get the same."""
    cpu = problems.clone(State(**vars(state)))
    cpu.model_input, cpu.model_output = state.model_input.cpu(), state.model_output.cpu()
    return problems.outputs(cpu, tick)


def test_the_compiled_library_serves_cuda():
    assert ops.implementation("cuda")[0] == "compiled CUDA", ops.implementation("cuda")[1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", ["sample", "batch"])
def test_advance_has_the_bits_of_the_cpu(cls, rule, dtype, granularity):
    """Noise included. Sums are added in another order: norms and scores agree to rounding."""
    for elements in (1, 17, 1024, 1025, 40008):
        for stages in (1, 2):
            # A solver that adds noise has no repair.
            stochastic = rule in problems.REUSE or ("repair" not in rule and elements == 17)
            table = problems.table(14, 3, stages, stochastic, seed=elements)
            config = problems.config(rule, table, 0.6, 3, granularity, elements)
            cpu = problems.state(table, 3, elements, config, True, dtype, seed=elements)
            gpu = on_gpu(cpu, cls)
            while bool((cpu.index < table.num_steps).any()):
                output = problems.outputs(cpu, int(cpu.index.sum()))
                cpu.model_output.copy_(output)
                gpu.model_output.copy_(output)
                cpu.advance()
                gpu.advance()
                if bool(((cpu.score - 1).abs() < 1e-3).any()):
                    break  # a tie: either decision is right
                for name in ("norms", "score"):
                    a, b = getattr(cpu, name), getattr(gpu, name).cpu()
                    assert torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True), name
                assert_same(cpu, gpu, ("workspace", "norms", "score"))


@pytest.mark.parametrize("rule", RULES)
def test_advance_is_step_repeated(cls, rule):
    """Held in registers, read again, too large for one launch, not on 16 bytes: the same bits."""
    # Held in registers; in shared memory too; more than fits; more samples than blocks at once; not
    # on 16 bytes; a long history; a run of nine.
    shapes = [(1, 65536), (70, 20480), (1, 2_000_008), (1, 8_000_000), (300, 2048), (3, 4099)]
    cases = [(*shape, 2, 4) for shape in shapes] + [(2, 4096, 4, 4), (2, 4096, 2, 9)]
    for batch, elements, history, max_skip in cases:
        table = problems.table(11, history, stochastic="repair" not in rule)
        config = problems.config(rule, table, 0.6, max_skip)
        one = on_gpu(problems.state(table, batch, elements, config), cls)
        if history == 4:
            one.noise = torch.randn(11, batch, elements, device=DEVICE)
        many = problems.clone(one)
        for tick in range(4):
            one.model_output.copy_(fed(one, tick))
            many.model_output.copy_(one.model_output)
            one.advance()
            many.step(True)
            for _ in range(10):
                many.step(False)
            assert_same(one, many)


def test_buffers_are_views_and_nothing_beside_them_is_touched(cls):
    table = problems.table(6, 3)
    config = problems.config("defect", table)
    for elements in (1, 7, 8, 2049, 20480):
        state = on_gpu(problems.state(table, 2, elements, config, True, torch.float16), cls)
        plain, guards = problems.clone(state), []
        for name in (
            *("latents", "history", "model_input", "timestep", "progress", "norms"),
            *("refreshed", "score", "outputs", "workspace"),
        ):
            value = getattr(state, name)
            # 33: no written row stands on a 16-byte boundary but the workspace's.
            room = torch.full((value.numel() + 66,), 77, device=DEVICE).to(value.dtype)
            inside = room[33:-33].view(value.shape).copy_(value)
            setattr(state, name, inside)
            guards.append((room, room[:33].clone(), room[-33:].clone()))
        for tick in range(6):
            output = fed(plain, tick)
            for buffers in (plain, state):
                buffers.model_output.copy_(output)
                buffers.advance()
        # Triton adds in another order where rows stand elsewhere.
        assert_same(plain, state, ("workspace", "norms", "score"))
        assert torch.allclose(plain.norms, state.norms, rtol=1e-4, atol=1e-6)
        for room, head, tail in guards:
            assert torch.equal(room[:33], head)
            assert torch.equal(room[-33:], tail)


def test_more_than_two_to_the_31_elements(cls):
    """Offsets are 64 bits: the last elements of a huge sample have the bits of a small one."""
    elements, last = 2**29 + 4096, 4096
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GB of free device memory")
    table = problems.table(6, 2)
    config = AdaptiveConfig(max_skip=1, criterion="every(2)")
    small = on_gpu(problems.state(table, 1, last, config, dtype=torch.bfloat16), cls)
    huge = problems.clone(small)
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
        small.model_output.copy_(fed(small, tick))
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


def start(rule, cls, elements=70008, batch=4):
    table = problems.table(10, 2)
    config = problems.config(rule, table, 0.6)
    state = on_gpu(problems.state(table, batch, elements, config, True), cls)
    state.model_output.normal_(generator=torch.Generator(DEVICE).manual_seed(0))
    return state


@pytest.mark.parametrize("rule", ["third_order", "released", "defect"])
def test_bitwise_the_same_in_a_hundred_runs_and_inside_a_graph(cls, rule):
    state = start(rule, cls)
    first = three(problems.clone(state))
    for _ in range(99):
        assert_same(first, three(problems.clone(state)))
    captured = problems.clone(state)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        three(captured)
    graph.replay()
    assert_same(first, captured)


@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_two_streams_and_two_threads(cls, rule):
    """States have their own workspace: what runs beside them does not change a bit."""
    states = [start(rule, cls, elements) for elements in (70008, 4104)]
    expected = [three(problems.clone(one)) for one in states]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in states]
    for _ in range(20):
        both = [problems.clone(one) for one in states]
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
                fresh = problems.clone(one)
                three(fresh)
                stream.synchronize()
                assert_same(fresh, right)

    problems.together(
        *(functools.partial(run, *job) for job in zip(states, streams, expected, strict=True))
    )


@pytest.mark.parametrize("rule", ["third_order", "defect", "plan"])
def test_nothing_synchronises(cls, rule):
    state = start(rule, cls, 5000)
    three(problems.clone(state))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            state.advance()
            state.step(True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_whole_sampling_never_synchronises(cls):
    """Network and advance until the last sample ends; finished samples stand still meanwhile."""
    table = problems.table(12, 2)
    config = problems.config("defect", table, 1.0)
    state = on_gpu(problems.state(table, 3, 4096, config), cls)
    expected = problems.clone(state)
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


def test_nan_in_one_sample_leaves_the_others(cls):
    clean = start("third_order", cls)
    sick = problems.clone(clean)
    sick.model_output[1, 5] = torch.nan
    for state in (clean, sick):
        three(state)
    others = [0, 2, 3]
    assert torch.equal(clean.current()[others], sick.current()[others])
    assert bool(sick.refreshed[:3, 1].all())


@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_opcheck(rule):
    state = on_gpu(problems.ready(rule, guided=True))
    torch.library.opcheck(ops.step, (*state.arguments(), True))
    torch.library.opcheck(ops.advance, state.arguments())


@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_a_compiled_network_with_step_has_no_graph_break(rule, mode):
    torch.compiler.reset()
    torch.manual_seed(0)
    network = torch.nn.Linear(40, 40).to(DEVICE).requires_grad_(False)
    eager = on_gpu(problems.ready(rule, 2.0))
    compiled = problems.clone(eager)

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
    state = on_gpu(problems.state(problems.table(10, 2), 2, 50))
    state.threshold = state.threshold.cpu()
    with pytest.raises(RuntimeError, match="threshold must be on cuda:0 as latents is"):
        state.advance()
    for name in ("outputs", "weights", "run_cost", "workspace"):
        state = on_gpu(
            problems.state(problems.table(10, 2), 2, 50, AdaptiveConfig(criterion="defect"))
        )
        setattr(state, name, getattr(state, name).cpu())
        with pytest.raises(RuntimeError, match=f"{name} must be on cuda:0 as latents is"):
            state.advance()
    state = on_gpu(problems.state(problems.table(10, 2), 2, 50))
    state.workspace = None
    with pytest.raises(RuntimeError, match="workspace must be given on a GPU"):
        state.advance()
