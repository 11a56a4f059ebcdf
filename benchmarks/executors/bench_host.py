"""What the call of a captured loop costs the host around its launch, where nothing has changed.

    python -m pytest benchmarks/executors/bench_host.py --benchmark-only \
        --benchmark-json=bench/host.json

On the stand-in for a driver, with a launch that does nothing, and one CPU thread: what is left is
what a sampler does before and after it. Its operators are CPU ones, which cost the host about what
the launch of a small CUDA kernel does.

A case has two runners that take turns: "captured" is the call; "own" is a captured loop called by
hand, which copies latents and conditioning in, clones the result and asks whether it is finite.
Networks: "small" of 10 modules, "large" of 1,802, which is about SDXL's U-Net.
"""

import functools

import pytest
import torch
from torch import Tensor, nn

import adaptive_kernels as ak
from tests.support.driver import fake_runtime
from tests.support.problems import ddim

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, TEXT = (1, 4, 64, 64), (1, 77, 64)
STEPS = 50
LAYERS = {"small": 2, "large": 450}


class Network(nn.Module):
    """Layers as a network holds them, four modules each; its forward looks at none."""

    def __init__(self, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.SiLU()) for _ in range(layers)
        )

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor | None = None) -> Tensor:
        return x * 0.5


class Captured:
    """A sampler whose loop was captured, and what it is called with."""

    def __init__(self, layers: int, guided: bool, runtimes: list):
        self.sampler = ak.AdaptiveSampler(
            ddim(STEPS), guidance_scale=5.0 if guided else None, executor="graph", progress=False
        )
        self.model, self.noise = Network(layers).eval(), torch.randn(SHAPE)
        self.conditioning = {"text": torch.randn(TEXT)}
        self.unconditional = {"text": torch.randn(TEXT)} if guided else None
        self()
        runtimes[-1].launch = lambda loop: None

    def __call__(self) -> None:
        self.sampler(self.model, self.noise, self.conditioning, self.unconditional)


class Own:
    """The same by hand."""

    def __init__(self, guided: bool):
        halves = 2 if guided else 1
        self.noise, self.latents = torch.randn(SHAPE), torch.zeros(SHAPE)
        self.text = torch.randn(halves, *TEXT[1:])
        self.buffer = torch.zeros_like(self.text)

    @torch.no_grad()
    def __call__(self) -> None:
        self.latents.copy_(self.noise)
        self.buffer.copy_(self.text)
        result = self.latents.clone()
        if not bool(result.isfinite().all()):
            raise AssertionError("the result of finite latents must be finite")


@functools.lru_cache
def host_rounds(network, guided, take_turns, count_operators):
    """{runner: (its rounds, operators of a call)}."""
    with pytest.MonkeyPatch.context() as patch:
        captured = Captured(LAYERS[network], guided, fake_runtime.install(patch))
        runners = {"own": Own(guided), "captured": captured}
        try:
            calls = {name: count_operators(call) for name, call in runners.items()}
            rounds = take_turns(runners)
        finally:
            captured.sampler.close()
    return {name: (rounds[name], calls[name]) for name in runners}


@pytest.mark.parametrize("implementation", ["own", "captured"])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("network", LAYERS)
def test_call(benchmark, replay, take_turns, count_operators, network, guided, implementation):
    found = host_rounds(network, guided, take_turns, count_operators)
    rounds, calls = found[implementation]
    benchmark.group = f"{network}-{'guided' if guided else 'plain'}"
    benchmark.extra_info.update(
        implementation=implementation,
        bytes_moved=0,
        operator_calls=calls,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    replay(rounds)
