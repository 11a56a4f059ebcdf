"""Which executor runs a sampling: the one asked for, or the fastest of those that work."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..rules.config import AdaptiveConfig
from ..rules.criteria import longest_run
from ..sampling.network import Look, Walk
from ..sampling.state import State
from ..solvers.table import SolverTable
from . import capability
from .capture import CapturedNetwork, signature
from .eager import Job, eager
from .fastest import Fastest
from .graph import Loop
from .groups import Groups, least_groups
from .guard import CaptureError
from .runtime import Runtime


class Prepared(NamedTuple):
    """A captured network, and what was built on it by the executor's name."""

    network: CapturedNetwork
    built: dict[str, Loop | Groups]


class _Capture:
    """What is captured for one signature, and what was learnt about it."""

    def __init__(self, key: Any, model: tuple, names: list[str]):
        self.signature, self.model = key, model
        self.seen: dict[int, Walk] = {}  # of the last job's look
        self.fastest = Fastest(names)
        self.why_not: dict[str, str] = {}
        self.network: CapturedNetwork | None = None
        self.built: dict[str, Loop | Groups] = {}

    def refuse(self, name: str, why: str) -> None:
        # A network that no graph takes need not be tried again in another one.
        for executor in [name] if self.network is not None else list(self.fastest.names):
            self.fastest.drop(executor)
            self.why_not[executor] = why

    def keep(self, name: str) -> None:
        """Frees what was built for other names."""
        for executor in [n for n in self.built if n != name]:
            self.built.pop(executor).close()

    def close(self) -> None:
        """Waits for the last launch and frees everything."""
        if self.network is not None:
            self.network.settle()
        self.keep("")
        if self.network is not None:
            self.network.close()
        self.network = None


def _mode(job: Job) -> tuple:
    """The model, and whether parts of it train."""
    model = job.network.model
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    return model, any(module.training for module in modules)


def _works(name: str, job: Job, works: bool, why: str) -> tuple[bool, str]:
    """Whether an executor that works on a device, or not, does so for a job, and why."""
    if works and name != "eager" and job.callback is not None:
        return False, "a callback runs between network calls"
    if works and name != "eager" and job.start.latents.numel() == 0:
        return False, "there is nothing to sample"
    return works, why


class Executors:
    """Runs jobs of one table and config by the executor asked for, or by the fastest that works.

    Holds one captured network and what was built on it, until a job of another signature comes or
    `close`. Jobs that run on it take turns; eager ones run beside each other.

    Args:
        name: "auto" or one of `capability.EXECUTORS`.
    """

    def __init__(self, name: str, table: SolverTable, config: AdaptiveConfig):
        choices = ("auto", *capability.EXECUTORS)
        if name not in choices:
            raise ValueError(
                f"executor must be one of {', '.join(map(repr, choices))}, got {name!r}"
            )
        self.name, self.table, self.config = name, table, config
        self._lock = threading.RLock()
        self._capture: _Capture | None = None
        self._captures = 0

    def run(self, job: Job, bar: Any, finish: Callable[[State, str, str], Any]) -> Any:
        """Runs a job; returns ``finish(state, executor, why)``, called before another one starts.

        Raises: CaptureError, or RuntimeError, where the executor asked for does not work.
        """
        candidates = [self.name] if self.name != "auto" else capability.EXECUTORS
        able = capability.executors(capability.facts(job.start.latents.device.type))
        answers = {name: _works(name, job, *able[name]) for name in candidates}
        why_not = {name: why for name, (works, why) in answers.items() if not works}
        if self.name in why_not:
            raise RuntimeError(f"executor {self.name!r} does not work here: {why_not[self.name]}")
        names = [name for name in candidates if name not in why_not and name != "eager"]
        if names:
            with self._alone(job) as job:
                chosen = self._choose(job, names, why_not)
                if chosen is not None:
                    name, built = chosen
                    why = self._why(answers[name][1], why_not)
                    return self._launch(name, built, bar, finish, why)
        if self.name in why_not:
            raise CaptureError(why_not[self.name])
        return finish(eager(job, bar), "eager", self._why(answers["eager"][1], why_not))

    @contextlib.contextmanager
    def _alone(self, job: Job) -> Iterator[Job]:
        """With the captures to itself: the job, whose modules are looked at again if it waited."""
        waited = not self._lock.acquire(blocking=False)
        if waited:
            self._lock.acquire()
        try:
            yield replace(job, look=self.look()) if waited else job
        finally:
            self._lock.release()

    def look(self) -> Look:
        """A look at a job's modules, which tells changes since the last one that was captured."""
        capture = self._capture
        return Look(capture.seen if capture is not None else None)

    def prepared(self) -> Prepared | None:
        """What stands ready to launch; None where nothing was captured."""
        with self._lock:
            if self._capture is None or self._capture.network is None:
                return None
            return Prepared(self._capture.network, self._capture.built)

    def report(self) -> dict:
        """What is captured now: captures so far, what is built on it, bytes on the device."""
        with self._lock:
            network = self._capture.network if self._capture else None
            return {
                "captures": self._captures,
                "built": sorted(self._capture.built) if self._capture else [],
                "memory": network.memory() if network else {"activations": 0, "buffers": 0},
            }

    def close(self) -> None:
        """Waits for the last launch and frees what was captured; the next job captures again."""
        with self._lock:
            if self._capture is not None:
                self._capture.close()
            self._capture = None

    def __del__(self):
        with contextlib.suppress(Exception):
            self.close()

    def __reduce__(self):
        # A copy captures for itself.
        return Executors, (self.name, self.table, self.config)

    def _why(self, why: str, why_not: dict[str, str]) -> str:
        if self.name != "auto":
            return "as asked"
        return "; ".join([why, *(f"not {name}: {reason}" for name, reason in why_not.items())])

    def _choose(
        self, job: Job, names: list[str], why_not: dict[str, str]
    ) -> tuple[str, Loop | Groups] | None:
        """The executor to run now, ready; None: none of the names, for what `why_not` says then."""
        capture = self._hold(job, names)
        while capture.fastest.names:
            name = capture.fastest.next()
            try:
                built = self._prepare(name, job)
            except torch.OutOfMemoryError as error:
                # There may be room next time.
                self.close()
                if self.name != "auto":
                    raise
                why_not[name] = f"out of memory: {error}"
                return None
            except RuntimeError as error:
                capture.refuse(name, str(error))
                if self.name != "auto":
                    raise
            else:
                why_not |= capture.why_not
                return name, built
        why_not |= capture.why_not
        return None

    def _hold(self, job: Job, names: list[str]) -> _Capture:
        capture, key = self._capture, signature(job.network, job.start, job.look)
        # A model that no graph takes is not asked again because it counts its calls, say.
        in_vain = capture is not None and not capture.fastest.names and capture.model == _mode(job)
        if capture is None or (capture.signature != key and not in_vain):
            self.close()
            self._capture = _Capture(key, _mode(job), names)
        self._capture.seen = job.look.seen
        return self._capture

    def _prepare(self, name: str, job: Job) -> Loop | Groups:
        """The executor over buffers that hold the job's values; captures where it has to."""
        capture = self._capture
        if capture.network is None:
            runtime = Runtime(job.start.latents.device)
            capture.network = CapturedNetwork(runtime, job.network, job.start)
            # A model may have changed in its first calls: caches made, calls counted.
            look = Look(job.look.seen)
            capture.signature = signature(job.network, job.start, look)
            capture.seen = look.seen
            self._captures += 1
        if name not in capture.built:
            capture.built[name] = self._build(name, capture.network)
        capture.network.load(job.network, job.start)
        return capture.built[name]

    def _build(self, name: str, network: CapturedNetwork) -> Loop | Groups:
        if name == "graph":
            return Loop(network, longest_run(network.state.rule, self.table.num_steps))
        return Groups(network, least_groups(self.table, self.config))

    def _launch(self, name, built, bar, finish, why) -> Any:
        capture, choosing = self._capture, self._capture.fastest.choosing
        began = capture.network.runtime.mark() if choosing else None
        built.run(bar)
        state = capture.network.state
        if measured := capture.fastest.measured():
            why = f"{why}; {measured}"
        ended = capture.network.last
        # The next launch comes after what is read, on whatever stream.
        with capture.network.launching():
            result = finish(state, name, why)
        if choosing:
            ticks = int(state.nfe.max())
            ended.wait()
            capture.fastest.took(name, began.until(ended), ticks)
            if not capture.fastest.choosing:
                capture.keep(capture.fastest.best())
        return result
