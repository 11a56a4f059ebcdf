"""Offload and compilation: a skipped call moves no weights, breaks no graph, compiles nothing."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import adaptive_kernels as ak
from adaptive_kernels.pipelines.standin import StandIn
from tests.support.pipelines.cases import CASES

accelerate = pytest.importorskip("accelerate")
SKIPPING = ak.AdaptiveConfig(criterion="every(3)")
CASE = CASES["sd15"]


def networks(pipe):
    return ak.summary(pipe, as_dict=True)["last"]["networks"]["unet"]


def offload(pipe, kind):
    if kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        # What enable_sequential_cpu_offload does to each of the models.
        accelerate.cpu_offload(pipe.unet, torch.device("cpu"))


@pytest.fixture
def moves(monkeypatch):
    """Calls of the offload hooks that bring weights to where they are used, by module."""
    seen = []
    for name in ("CpuOffload", "AlignDevicesHook"):
        hook = getattr(accelerate.hooks, name)
        own = hook.pre_forward

        def pre_forward(self, module, *args, _own=own, **kwargs):
            seen.append(module)
            return _own(self, module, *args, **kwargs)

        monkeypatch.setattr(hook, "pre_forward", pre_forward)
    return seen


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_a_skipped_call_moves_no_weights(kind, order, moves):
    """Offload switched on before or after, in the first call and in those that follow."""
    pipe = CASE.make()
    with ak.adaptive(pipe, SKIPPING):
        expected = CASE.generate(pipe)
    if order == "before":
        offload(pipe, kind)
    ak.enable_adaptive(pipe, SKIPPING)
    if order == "after":
        offload(pipe, kind)
    for _ in range(3):
        moves.clear()
        assert torch.equal(CASE.generate(pipe), expected)
        assert networks(pipe)["skipped"] > 0
        # One convolution stands for all of them where every layer has a hook.
        watched = pipe.unet if kind == "model" else pipe.unet.conv_in
        assert sum(module is watched for module in moves) == networks(pipe)["made"]
    ak.disable_adaptive(pipe)
    moves.clear()
    CASE.generate(pipe)
    assert sum(module is watched for module in moves) == 15
    pipe.remove_all_hooks()
    assert not isinstance(vars(pipe.unet).get("forward"), StandIn)


@pytest.mark.parametrize("order", ["compiled first", "enabled first"])
@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_a_compiled_network_stays_one_graph(how, order):
    """fullgraph holds, nothing is compiled again, and the graph runs as often as it is called."""
    torch.compiler.reset()
    counter = CompileCounter()
    pipe = CASE.make()
    with ak.adaptive(pipe, SKIPPING):
        expected = CASE.generate(pipe)
    if order == "enabled first":
        ak.enable_adaptive(pipe, SKIPPING)
    if how == "torch.compile":
        pipe.unet = torch.compile(pipe.unet, backend=counter, fullgraph=True)
    else:
        pipe.unet.compile(backend=counter, fullgraph=True)
    ak.enable_adaptive(pipe, SKIPPING)
    result = CASE.generate(pipe)
    assert counter.frame_count == 1
    assert torch.equal(CASE.generate(pipe), result)
    assert (result - expected).abs().amax() <= 1e-5 * expected.abs().amax()
    assert networks(pipe) == {"made": 5, "skipped": 10}
    assert counter.frame_count == 1
    ak.disable_adaptive(pipe)
    CASE.generate(pipe)
    assert counter.frame_count == 1
    torch.compiler.reset()


def test_a_network_compiled_between_calls_is_compiled_without_us():
    torch.compiler.reset()
    counter = CompileCounter()
    pipe = ak.enable_adaptive(CASE.make(), SKIPPING)
    expected = CASE.generate(pipe)
    pipe.unet = torch.compile(pipe.unet, backend=counter, fullgraph=True)
    result = CASE.generate(pipe)
    assert counter.frame_count == 1 and networks(pipe)["skipped"] == 10
    assert (result - expected).abs().amax() <= 1e-5 * expected.abs().amax()
    torch.compiler.reset()
