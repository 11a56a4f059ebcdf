"""The executors' runtime without a GPU: CPU tensors, the driver of fake_driver.py.

A capture calls the function once, so that its result has a place, and keeps a way to do it again.
What `ops` is asked for while capturing is kept as kernels of a graph of the fake driver; a launch
of the loop, as the real module built it, then runs them.
"""

import contextlib
import threading

import torch
from fake_driver import FakeDriver

from adaptive_kernels import executors, ops, state
from adaptive_kernels.capability import Facts


class Done:
    """A mark on a device that does everything at once."""

    def done(self):
        return True

    def wait(self):
        return None

    def until(self, later):
        return 1.0


class Kept:
    """A capture: what to do again, and the same as a graph of the fake driver."""

    def __init__(self, runtime, actions, result):
        self.runtime, self.actions, self.result = runtime, actions, result
        self.raw = runtime.driver.graph()
        after = ()
        for action in actions:
            after = (runtime.driver.kernel(self.raw, lambda _, act=action: act(), after=after),)
        self.closed = False
        runtime.alive.append(self)

    def replay(self):
        self.runtime.replays += 1
        for action in self.actions:
            action()

    def bytes(self):
        return 0 if self.closed else 1000

    def close(self):
        assert not self.closed
        self.closed, self.result = True, None
        self.runtime.driver.destroy(self.raw)
        self.runtime.alive.remove(self)


class Recorder(threading.local):
    """Stands for `ops` inside state.py: while its thread captures, a launch is kept, not done."""

    kept = None

    def __getattr__(self, name):
        return getattr(ops, name)

    def _do(self, op, arguments, condition):
        if self.kept is None:
            assert condition is None, "a condition outside of a graph"
            op(*arguments)
        else:
            self.kept.append((op, arguments, condition))

    def advance(self, *arguments):
        self._do(ops.advance, arguments[:-1], arguments[-1])

    def step(self, *arguments):
        self._do(ops.step, arguments[:-1], arguments[-1])


class FakeRuntime:
    """`runtime.Runtime` for CPU tensors."""

    def __init__(self, device, driver, recorder):
        self.device, self.driver, self.recorder = device, driver, recorder
        self.module = driver.module()
        self.alive, self.replays, self.launches, self.captures = [], 0, 0, 0

    @contextlib.contextmanager
    def on_stream(self):
        yield

    def synchronize(self):
        pass

    def capture(self, function):
        assert self.recorder.kept is None
        self.captures += 1
        self.recorder.kept = []
        try:
            result = function()
            launches = self.recorder.kept
        finally:
            self.recorder.kept = None
        if result is None:
            return Kept(self, [self._again(*launch) for launch in launches], None)
        return Kept(self, [lambda: result.copy_(function())], result)

    def _again(self, op, arguments, condition):
        def again():
            op(*arguments)
            if condition is not None:
                progress, rows = arguments[4], arguments[13]
                self.driver.set_condition(condition, int((progress[0] < len(rows)).any()))

        return again

    def pinned(self, shape):
        return torch.zeros(shape, dtype=torch.int32)

    def copy(self, into, value):
        into.copy_(value)

    def mark(self):
        return Done()

    def follow(self, mark):
        pass

    def nodes(self, raw):
        return self.module.nodes(raw)

    def loop(self):
        return self.driver.loop(self.module)

    def upload(self, loop):
        loop.upload(0)

    def launch(self, loop):
        self.launches += 1
        loop.launch(0)


class Runtimes(list):
    """The runtimes that samplers made; `driver` is the next ones' driver, None: one each."""

    driver = None


def install(monkeypatch):
    """Every sampler of CPU tensors then has all executors; returns the runtimes they make."""
    made, recorder = Runtimes(), Recorder()
    facts = Facts("cuda", True, False, ("compiled CUDA", "a stand-in"), None)
    monkeypatch.setattr(executors.capability, "facts", lambda device: facts)
    monkeypatch.setattr(state, "ops", recorder)

    def runtime(device):
        made.append(FakeRuntime(device, made.driver or FakeDriver(), recorder))
        return made[-1]

    monkeypatch.setattr(executors, "Runtime", runtime)
    return made
