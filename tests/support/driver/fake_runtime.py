"""The executors' runtime without a GPU: CPU tensors, the driver of fake_driver.py.

A capture calls the function once, so that its result has a place, and keeps a way to do it again.
What `ops` is asked for while capturing is kept as kernels of a graph of the fake driver; a launch
of the loop, as the real module built it, then runs them.
"""

import contextlib
import threading

import pytest
import torch

from adaptive_kernels import ops
from adaptive_kernels.executors import select as executors
from adaptive_kernels.executors.capability import Facts
from adaptive_kernels.ops import fields
from adaptive_kernels.sampling import state
from tests.support.driver.fake_driver import FakeDriver, missing


class Done:
    """A mark on a device that does everything at once; `log` keeps the order of what was asked."""

    def __init__(self, log):
        self.log = log
        log.append(("mark", self))

    def done(self):
        return True

    def wait(self):
        self.log.append(("wait", self))

    def until(self, later):
        return 1.0


def parted(arguments):
    """The arguments by name, and what `step` has besides."""
    count = len(ops.Arguments._fields)
    return ops.Arguments(*arguments[:count]), arguments[count:]


class Kept:
    """A capture: what to do again, and the same as a graph of the fake driver."""

    def __init__(self, runtime, actions, result):
        self.runtime, self.actions, self.result = runtime, actions, result
        self.raw = runtime.driver.graph()
        after = ()
        for action in actions:
            after = (runtime.driver.kernel(self.raw, self._kernel(action), after=after),)
        self.closed = False
        runtime.alive.append(self)

    @staticmethod
    def _kernel(action):
        return lambda argument: action()

    def instantiate(self):
        if self.runtime.takes_graphs is False:
            raise RuntimeError("too many blocks in cooperative launch")

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
    done = ()

    def __getattr__(self, name):
        return getattr(ops, name)

    def _do(self, op, arguments, condition):
        if self.kept is None:
            assert condition is None, "a condition outside of a graph"
            self.done = [*self.done, op]
            op(*arguments)
        else:
            self.kept.append((op, arguments, condition))

    def advance(self, *arguments):
        self._do(ops.advance, arguments[:-1], arguments[-1])

    def step(self, *arguments):
        self._do(ops.step, arguments[:-1], arguments[-1])


class FakeRuntime:
    """`runtime.Runtime` for CPU tensors.

    `beside`: type of a node that the network leaves too. `emulated`: the module of that name, whose
    kernels then stand for the ops.
    """

    def __init__(self, device, driver, recorder, beside, emulated):
        self.device, self.driver, self.recorder = device, driver, recorder
        self.beside, self.emulated = beside, emulated
        self.module = driver.module()
        self.order = []
        self.alive, self.replays, self.launches, self.captures = [], 0, 0, 0

    @contextlib.contextmanager
    def on_stream(self):
        yield

    def synchronize(self):
        pass

    def capture(self, function):
        assert self.recorder.kept is None
        # Whatever is captured has run before: its kernels are loaded, its handles made.
        assert self.captures == 0 or ops.advance in self.recorder.done
        self.captures += 1
        self.recorder.kept = []
        try:
            result = function()
            launches = self.recorder.kept
        finally:
            self.recorder.kept = None
        if result is None:
            for _, arguments, _ in launches:
                self.driver.device(parted(arguments)[0].progress)
            return Kept(self, [self._again(*launch) for launch in launches], None)
        # A device writes where it was told, whatever mode torch was in.
        with torch.inference_mode(False), torch.no_grad():
            result = result.clone()
        kept = Kept(self, [lambda: result.copy_(function())], result)
        if self.beside is not None:
            self.driver.node(kept.raw, self.beside)
        return kept

    def _again(self, op, arguments, condition):
        if self.emulated is not None:
            return self._emulated(op, arguments, condition)

        def again():
            op(*arguments)
            if condition is not None:
                a, _ = parted(arguments)
                index = a.progress[fields.PROGRESS.index("index")]
                self.driver.set_condition(condition, int((index < len(a.rows)).any()))

        return again

    def _emulated(self, op, arguments, condition):
        """The CUDA kernels' own sources set the condition."""
        a, more = parted(arguments)
        shape = ops.workspace_shape(*a.latents.shape[1:])
        a = a._replace(workspace=torch.zeros(shape, dtype=torch.float64))
        kernel = getattr(torch.ops.adaptive_kernels_emulated, op._schema.name.split("::")[1])

        def again():
            self.emulated.set_device(seed=self.replays)
            kernel(*a, *more, condition)
            counters = self.emulated.counters()
            if condition is not None:
                # Where `step` is repeated, every launch sets it.
                assert counters["condition_calls"] == counters["launches"]
                self.driver.set_condition(counters["condition"], counters["value"])

        return again

    takes_cooperative = takes_graphs = True

    def release(self):
        assert self.alive == []
        self.released = True

    def pinned(self, shape):
        return self.driver.pin(torch.zeros(shape, dtype=torch.int32))

    def copy(self, target, value):
        target.copy_(value)

    def mark(self):
        return Done(self.order)

    def follow(self, mark):
        self.order.append(("follow", mark))

    def nodes(self, raw):
        return self.module.nodes(raw)

    def refusal(self, raw):
        return self.module.refusal(raw)

    def loop(self):
        return self.driver.loop(self.module)

    def upload(self, loop):
        loop.upload(0)
        self.order.append(("upload", loop))

    def launch(self, loop):
        self.launches += 1
        self.order.append(("launch", loop))
        try:
            loop.launch(0)
        except RuntimeError as error:
            raise (self.driver.raised or [error])[0] from error


class Runtimes(list):
    """The runtimes that samplers made; `driver` is the next ones' driver, None: one each."""

    driver = None
    beside = None
    emulated = None


def install(monkeypatch):
    """Every sampler of CPU tensors then has all executors; returns the runtimes they make."""
    pytest.importorskip("adaptive_kernels.executors._graph", reason="_graph was not built")
    if reason := missing():
        pytest.skip(reason)
    runtimes, recorder = Runtimes(), Recorder()
    facts = Facts("cuda", True, False, ("compiled CUDA", "a stand-in"), None)
    monkeypatch.setattr(executors.capability, "facts", lambda device: facts)
    monkeypatch.setattr(state, "ops", recorder)

    def runtime(device):
        runtimes.append(
            FakeRuntime(
                device,
                runtimes.driver or FakeDriver(),
                recorder,
                runtimes.beside,
                runtimes.emulated,
            )
        )
        return runtimes[-1]

    monkeypatch.setattr(executors, "Runtime", runtime)
    return runtimes
