"""What a call of a captured loop costs the host where nothing has changed: counted, not timed.

benchmarks/executors/bench_host.py times it.
"""

import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import adaptive_kernels as ak
from adaptive_kernels.sampling.network import walk
from benchmarks.executors import bench_host
from tests.support import denoisers, problems
from tests.support.driver import fake_runtime

# Without views, which launch nothing. The last two of a call read a value: the device is over then.
MOST_OPERATORS = {"plain": 30, "guided": 31}
VIEWS = {"view", "select", "detach", "slice", "expand", "alias", "_unsafe_view"}


class Operators(TorchDispatchMode):
    """The operators that reach a kernel."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def runtimes(monkeypatch):
    return fake_runtime.install(monkeypatch)


def captured(runtimes, scale):
    """A call of a loop that was captured, whose launches do nothing from now on."""
    # It skips, so that every call is looked at for too few skips.
    sampler = ak.AdaptiveSampler(
        problems.ddim(12),
        config=ak.AdaptiveConfig(1e30),
        guidance_scale=scale,
        executor="graph",
        progress=False,
    )
    model, x = denoisers.made(denoisers.UNet), torch.randn(2, 4, 8, 8)
    labels = {"label": torch.tensor([1, 2])}
    halves = (labels, {"label": torch.tensor([0, 0])} if scale else None)

    def call():
        sampler(model, x, *halves)

    call()
    runtimes[-1].launch = lambda loop: None
    return call, model


@pytest.mark.parametrize("kind", MOST_OPERATORS)
def test_a_call_asks_for_few_operators(runtimes, kind):
    call, _ = captured(runtimes, 3.0 if kind == "guided" else None)
    with Operators() as seen:
        call()
    assert len(seen.names) <= MOST_OPERATORS[kind], seen.names


def test_nothing_is_walked_through_again_nor_asked_for_its_signature(runtimes, monkeypatch):
    call, model = captured(runtimes, 3.0)
    walks, signatures = [], []
    through, signature = walk.Walk._through, inspect.signature

    def walked(self, module):
        walks.append(module)
        through(self, module)

    monkeypatch.setattr(walk.Walk, "_through", walked)
    monkeypatch.setattr(inspect, "signature", lambda f: signatures.append(f) or signature(f))
    call()
    assert walks == [] and signatures == []
    model.leave.scale = 2.0
    call()
    assert model in walks and signatures == []


@pytest.mark.parametrize("guided", [False, True])
def test_what_is_timed_is_a_call_of_a_captured_loop(runtimes, guided):
    captured = bench_host.Captured(1, guided, runtimes)
    for _ in range(2):
        captured()
        bench_host.Own(guided)()
    assert captured.sampler.report()["captures"] == 1 and len(runtimes) == 1
    assert captured.sampler.report()["built"] == ["graph"]
    captured.sampler.close()
