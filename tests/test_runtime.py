"""A capture ends whatever happens in it: torch's own bookkeeping, played by stand-ins."""

import contextlib

import pytest
import torch

from adaptive_kernels.runtime import Runtime


class World:
    """What torch.cuda would hold: whether a capture is on, the pools in use, the generator."""

    def __init__(self):
        self.log, self.pools, self.capturing = [], set(), False
        self.end_fails = self.begin_fails = self.generator_hangs = False
        self.offset, self.states = 40, []

    def say(self, word):
        self.log.append(word)


class Graph:
    def __init__(self, world, keep_graph):
        assert keep_graph
        self.world = world

    def capture_begin(self, pool, capture_error_mode):
        assert capture_error_mode == "thread_local" and not self.world.capturing
        self.world.pools.add(pool)
        if self.world.begin_fails:
            raise RuntimeError("cannot begin")
        self.world.capturing = True
        self.world.say("begin")

    def capture_end(self):
        assert self.world.capturing
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
        return "clean"

    def get_offset(self):
        return self.world.offset

    def set_offset(self, offset):
        self.world.offset = offset

    def graphsafe_set_state(self, state):
        self.world.states.append(state)
        self.world.generator_hangs = False


class Stream:
    cuda_stream = 5

    def __init__(self, *_):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class Drawn:
    def __init__(self, world):
        self.world = world

    def uniform_(self):
        if self.world.generator_hangs:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        self.world.offset += 4


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
        (torch.cuda, "CUDAGraph", lambda keep_graph: Graph(world, keep_graph)),
        (torch.cuda, "graph_pool_handle", lambda: (0, 1)),
        (torch.cuda, "empty_cache", lambda: None),
        (torch.cuda, "default_generators", [Generator(world)]),
        (torch._C, "_cuda_clearCublasWorkspaces", lambda: world.say("workspaces")),
        (torch._C, "_cuda_endAllocateToPool", end_pool),
        (torch._C, "_cuda_releasePool", lambda index, pool: world.say("released")),
        (torch, "empty", lambda *_, **__: Drawn(world)),
    ):
        monkeypatch.setattr(place, name, stand_in)
    return world


def fail():
    raise KeyError("in the network")


RUNTIME = torch.device("cuda", 0)


def test_a_capture_has_workspaces_of_its_own(world):
    captured = Runtime(RUNTIME).capture(lambda: world.say("function") or 7)
    assert captured.result == 7
    assert world.log == ["workspaces", "begin", "function", "end", "workspaces"]
    assert not world.capturing and not world.states


@pytest.mark.parametrize("thrown_away", [False, True])
@pytest.mark.parametrize("generator_hangs", [False, True])
def test_a_function_that_raises(world, thrown_away, generator_hangs):
    """Its error passes; where the driver threw the capture away, torch's books are set right."""
    world.end_fails, world.generator_hangs = thrown_away, generator_hangs and thrown_away
    with pytest.raises(KeyError, match="in the network"):
        Runtime(RUNTIME).capture(fail)
    assert not world.capturing and not world.pools and not world.generator_hangs
    assert world.log[-2:] == ["reset", "workspaces"] and world.offset == 40
    assert world.states == (["clean"] if thrown_away and generator_hangs else [])
    assert ("released" in world.log) == thrown_away
    world.end_fails = False
    assert Runtime(RUNTIME).capture(lambda: 1).result == 1


def test_a_capture_that_is_thrown_away_in_silence(world):
    world.end_fails = True
    with pytest.raises(RuntimeError, match="capture invalidated"):
        Runtime(RUNTIME).capture(lambda: 1)
    assert not world.pools and world.log[-1] == "workspaces"


def test_a_capture_that_does_not_begin(world):
    world.begin_fails = True
    with pytest.raises(RuntimeError, match="cannot begin"):
        Runtime(RUNTIME).capture(lambda: 1)
    assert not world.pools and world.log == ["workspaces", "released", "workspaces"]
