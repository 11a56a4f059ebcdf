"""A capture ends whatever happens in it: torch's own bookkeeping, played by stand-ins."""

import contextlib
import gc
from collections import defaultdict

import pytest
import torch

from adaptive_kernels.executors import runtime
from adaptive_kernels.executors.runtime import Runtime


class World:
    """What torch.cuda would hold: whether a capture is on, the pools in use, the generator."""

    def __init__(self):
        self.log, self.pools, self.capturing = [], set(), False
        self.end_fails = self.begin_fails = False
        self.state = "own"

    def say(self, word):
        self.log.append(word)


class Graph:
    def __init__(self, world, keep_graph=False):
        self.world = world

    def capture_begin(self, capture_error_mode, pool=None):
        assert capture_error_mode == "thread_local" and not self.world.capturing
        # torch 2.11 marks the generator's state: it may not be the one that others draw from.
        assert self.world.state == "clone"
        self.world.pools.add(pool)
        if self.world.begin_fails:
            raise RuntimeError("cannot begin")
        self.world.capturing = True
        self.world.say("begin")

    def capture_end(self):
        assert self.world.capturing and self.world.state == "own"
        self.world.capturing = False
        self.world.say("end")
        if self.world.end_fails:
            raise RuntimeError("capture invalidated")
        self.world.pools.clear()

    def reset(self):
        self.world.say("reset")


class Generator:
    def __init__(self, world):
        self.world = world

    def clone_state(self):
        return "clone"

    def graphsafe_get_state(self):
        return self.world.state

    def graphsafe_set_state(self, state):
        self.world.state = state


class Stream:
    cuda_stream = 5

    def __init__(self, *_):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


@pytest.fixture
def world(monkeypatch):
    world = World()

    def end_pool(index, pool):
        if pool not in world.pools:
            raise RuntimeError("not recording to it")
        world.pools.remove(pool)

    for place, name, stand_in in (
        (torch.cuda, "Stream", Stream),
        (torch.cuda, "device", lambda device: contextlib.nullcontext()),
        (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        (torch.cuda, "current_stream", Stream),
        (torch.cuda, "CUDAGraph", lambda keep_graph=False: Graph(world, keep_graph)),
        (torch.cuda, "graph_pool_handle", lambda: (0, 1)),
        (torch.cuda, "empty_cache", lambda: world.say("cache")),
        (torch.cuda, "default_generators", [Generator(world)]),
        (torch._C, "_cuda_endAllocateToPool", end_pool),
        (torch._C, "_cuda_releasePool", lambda index, pool: world.say("released")),
        (torch, "ones", lambda *shape, device: torch.zeros(shape)),
        (runtime, "_FREE", defaultdict(list)),
        (runtime, "_SPOILT", []),
    ):
        monkeypatch.setattr(place, name, stand_in)
    return world


def fail():
    raise KeyError("in the network")


DEVICE = torch.device("cuda", 0)


@pytest.fixture
def device_runtime(world):
    """A runtime whose stream has its workspace already."""
    device_runtime = Runtime(DEVICE)
    assert world.log == ["begin", "end"]
    world.log.clear()
    return device_runtime


def test_a_capture(world, device_runtime):
    captured = device_runtime.capture(lambda: world.say("function") or gc.isenabled() or 7)
    assert captured.result == 7 and gc.isenabled()
    assert world.log == ["cache", "begin", "function", "end"]


def test_streams_are_used_again_but_by_one_at_a_time(device_runtime):
    other = Runtime(DEVICE)
    assert other.stream is not device_runtime.stream
    device_runtime.release()
    device_runtime.release()
    assert Runtime(DEVICE).stream is device_runtime.stream
    assert Runtime(DEVICE).stream not in (device_runtime.stream, other.stream)


@pytest.mark.parametrize("thrown_away", [False, True])
def test_a_function_that_raises(world, device_runtime, thrown_away):
    """Its error passes; where the driver threw the capture away, torch's books are set right."""
    world.end_fails = thrown_away
    with pytest.raises(KeyError, match="in the network"):
        device_runtime.capture(fail)
    assert not world.capturing and not world.pools and world.state == "own" and gc.isenabled()
    assert world.log[-1] == "reset" and ("released" in world.log) == thrown_away
    assert len(runtime._SPOILT) == thrown_away
    world.end_fails = False
    assert device_runtime.capture(lambda: 1).result == 1


def test_a_capture_that_is_thrown_away_in_silence(world, device_runtime):
    world.end_fails = True
    with pytest.raises(RuntimeError, match="capture invalidated"):
        device_runtime.capture(lambda: 1)
    assert not world.pools and gc.isenabled()


def test_a_capture_that_does_not_begin(world, device_runtime):
    world.begin_fails = True
    with pytest.raises(RuntimeError, match="cannot begin"):
        device_runtime.capture(lambda: 1)
    assert not world.pools and world.state == "own" and gc.isenabled()


def test_pinned_memory_is_the_hosts_whatever_is_default(device_runtime, monkeypatch):
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, pin_memory, **k: zeros(*a, **k))
    with torch.device("meta"), torch.inference_mode():
        memory = device_runtime.pinned((2, 3))
    assert memory.device.type == "cpu" and memory.dtype == torch.int32
    assert not memory.is_inference()
