"""How a sampling runs: the loop on the device, groups launched ahead, or the plain loop."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import capability
from .ahead import least_groups
from .captured import CapturedNetwork, signature
from .config import AdaptiveConfig
from .fills import longest_run
from .graph import Loop
from .groups import Groups
from .network import NetworkCall
from .runtime import Runtime
from .schedule import SolverTable
from .state import State
from .watch import CaptureError


@dataclass(frozen=True)
class Job:
    """One sampling: its buffers before the first step, and the network."""

    network: NetworkCall
    state: State
    gather: bool
    callback: Callable[[int, State], None] | None  # (ticks, state) after every tick


def eager(job: Job, bar: Any) -> None:
    """The plain loop, on any device; reads the samples' steps once per tick."""
    state, network = job.state, job.network
    steps, batch = len(state.rows), state.latents.shape[1]
    tick = 0
    while len(rows := (state.index < steps).nonzero()[:, 0]):
        partial = rows if job.gather and len(rows) < batch else None
        output = network(state.model_input, state.timestep, partial)
        state.advance(output, partial)
        tick += 1
        bar.update(int(state.index.sum()) - bar.n)
        if job.callback is not None:
            job.callback(tick, state)


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
        self._network: CapturedNetwork | None = None
        self._built: dict[str, Loop | Groups] = {}
        # What failed last: signature, the model (whose id it names), why.
        self._refused: dict[str, tuple[Any, Any, str]] = {}
        self._captures = 0

    def run(self, job: Job, bar: Any, finish: Callable[[State, str, str], Any]) -> Any:
        """Runs a job; returns ``finish(state, executor, why)``, called before another one starts.

        Raises: CaptureError, or RuntimeError, where the executor asked for does not work.
        """
        tried = []
        for name in capability.EXECUTORS if self.name == "auto" else (self.name,):
            works, why = self._works(name, job)
            if works and name == "eager":
                eager(job, bar)
                return finish(job.state, name, self._why(tried, why))
            if works:
                with self._lock:
                    try:
                        built = self._prepared(name, job)
                    except CaptureError as error:
                        if self.name != "auto":
                            raise
                        why = str(error)
                    else:
                        built.run(bar)
                        return finish(self._network.state, name, self._why(tried, why))
            elif self.name != "auto":
                raise RuntimeError(f"executor {name!r} does not work here: {why}")
            tried.append(f"not {name}: {why}")
        raise AssertionError("the plain loop works everywhere")

    def report(self) -> dict:
        """What is captured now: number of captures so far, what is built, bytes on the device."""
        with self._lock:
            held = self._network is not None
            return {
                "captures": self._captures,
                "built": sorted(self._built),
                "memory": self._network.memory() if held else {"activations": 0, "buffers": 0},
            }

    def close(self) -> None:
        """Waits for the last launch and frees what was captured; the next job captures again."""
        with self._lock:
            if self._network is None:
                return
            self._network.settle()
            for built in self._built.values():
                built.close()
            self._built = {}
            self._network.close()
            self._network = None

    def __del__(self):
        with contextlib.suppress(Exception):
            self.close()

    def __reduce__(self):
        # A copy captures for itself.
        return Executors, (self.name, self.table, self.config)

    def _works(self, name: str, job: Job) -> tuple[bool, str]:
        latents = job.state.latents
        if name != "eager" and job.callback is not None:
            return False, "a callback runs between network calls"
        if name != "eager" and latents.numel() == 0:
            return False, "there is nothing to sample"
        return capability.executors(capability.facts(latents.device.type))[name]

    def _why(self, tried: list[str], why: str) -> str:
        return "; ".join([why if self.name == "auto" else "as asked", *tried])

    def _prepared(self, name: str, job: Job) -> Loop | Groups:
        """The executor over buffers that hold the job's values; captures where it has to."""
        wanted = signature(job.network, job.state)
        if self._network is None or self._network.signature != wanted:
            refused = self._refused.get(name)
            if refused is not None and refused[0] == wanted:
                raise CaptureError(refused[2])
            self.close()
        try:
            if self._network is None:
                self._network = CapturedNetwork(self._runtime(job), job.network, job.state)
                self._captures += 1
            if name not in self._built:
                self._built[name] = self._build(name)
        except CaptureError as error:
            # A network that no graph takes need not be tried again in another one.
            names = [name] if self._network is not None else capability.EXECUTORS
            self._refused |= {n: (wanted, job.network.model, str(error)) for n in names}
            raise
        self._network.load(job.network, job.state)
        return self._built[name]

    def _runtime(self, job: Job) -> Runtime:
        return Runtime(job.state.latents.device)

    def _build(self, name: str) -> Loop | Groups:
        if name == "graph":
            return Loop(self._network, longest_run(self.table, self.config))
        return Groups(self._network, least_groups(self.table, self.config))
