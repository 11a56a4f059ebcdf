"""`step` and `advance` inside torch.compile, torch.export and AOTInductor."""

import sysconfig
from pathlib import Path

import pytest
import torch

from adaptive_kernels import ops
from adaptive_kernels.ops import fields
from tests.support import problems

needs_headers = pytest.mark.skipif(
    not Path(sysconfig.get_paths()["include"], "Python.h").exists(),
    reason="torch.compile on the CPU needs Python's headers (python3-dev)",
)
# Inductor may fuse the network's own arithmetic differently by some last places.
UNITS = {torch.bfloat16: 2.0**-7, torch.float32: 2.0**-20}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Tanh()).to(dtype)
    return layers.requires_grad_(False)


def step(state):
    state.step(True)


def advance(state):
    state.advance()


@needs_headers
def test_a_compiled_tick_with_gradients_leaves_no_graph_in_the_state():
    torch.compiler.reset()
    module = network().requires_grad_(True)
    free, state = (problems.ready("defect", 2.0) for _ in range(2))

    def tick(state):
        state.model_output.copy_(module(state.model_input))
        state.advance()

    compiled = torch.compile(tick, fullgraph=True)
    for _ in range(4):
        with torch.no_grad():
            tick(free)
        compiled(state)
        for tensor in problems.tensors(state).values():
            assert tensor.grad_fn is None and not tensor.requires_grad
    assert torch.equal(free.progress, state.progress)
    assert (free.current() - state.current()).abs().max() <= 8 * UNITS[torch.float32]


@needs_headers
@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
@pytest.mark.parametrize(
    ("rule", "dtype", "verb"),
    [("third_order", torch.float32, step), ("defect", torch.bfloat16, advance)],
)
def test_a_compiled_network_with_an_op_has_no_graph_break(rule, dtype, verb, mode):
    """network + op in one fullgraph region gives the latents and decisions of eager."""
    torch.compiler.reset()
    module = network(dtype)
    eager = problems.ready(rule, 2.0, dtype=dtype)
    compiled = eager.clone()

    def tick(state):
        state.model_output.copy_(module(state.model_input))
        verb(state)

    compiled_tick = torch.compile(tick, fullgraph=True, mode=mode)
    for _ in range(8):
        tick(eager)
        compiled_tick(compiled)
    assert torch.equal(eager.progress, compiled.progress)
    assert torch.equal(eager.refreshed, compiled.refreshed)
    assert verb is step or eager.nfe.max() < 8
    assert (eager.current() - compiled.current()).abs().max() <= 8 * UNITS[dtype]


class Tick(torch.nn.Module):
    """network + step as a module of tensors, as torch.export wants it."""

    def __init__(self, state):
        super().__init__()
        self.network, self.rule = network(), state.rule

    def forward(self, *tensors):
        a = ops.Arguments(*tensors, *self.rule)
        a.model_output.copy_(self.network(a.model_input))
        ops.step(*a, True)


def tensors(state):
    """{name: tensor or None} in the ops' order."""
    return {name: getattr(state, name) for name in fields.NAMES}


def exported(state):
    given = tuple(tensors(state.clone()).values())
    return torch.export.export(Tick(state), given)


def assert_runs_as(program, state, but=()):
    """A call of the program leaves the state that the module's leaves."""
    got, expected = state.clone(), state.clone()
    program(*tensors(got).values())
    Tick(state)(*tensors(expected).values())
    assert expected.index.tolist() == [1, 1]
    for name, value in tensors(expected).items():
        if value is not None and name not in but:
            assert torch.equal(getattr(got, name).nan_to_num(7), value.nan_to_num(7)), name


@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_a_step_is_exported(rule):
    state = problems.ready(rule)
    program = exported(state)
    calls = [str(node.target) for node in program.graph.nodes if "adaptive" in str(node.target)]
    assert calls == ["adaptive_kernels.step.default"]
    assert_runs_as(program.module(), state)


@needs_headers
def test_an_exported_step_runs_without_python(tmp_path):
    """AOTInductor: a package that calls the op of the loaded library."""
    state = problems.ready("defect")
    path = torch._inductor.aoti_compile_and_package(
        exported(state), package_path=str(tmp_path / "tick.pt2")
    )
    program = torch._inductor.aoti_load_package(path)
    # The network itself is compiled, and its output off by last places; x and m are of size 1.
    approximate = ("model_output", "latents", "model_input", "history", "outputs", "measures")
    assert_runs_as(program, state, but=approximate)
    got, expected = state.clone(), state.clone()
    program(*tensors(got).values())
    Tick(state)(*tensors(expected).values())
    for name in approximate:
        a, b = getattr(got, name), getattr(expected, name)
        assert torch.allclose(a, b, rtol=0, atol=8 * UNITS[torch.float32], equal_nan=True), name
