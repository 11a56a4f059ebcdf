"""One run of a pipeline's loop: which calls reach the networks, and who steps the solver."""

import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..rules.config import AdaptiveConfig
from . import outputs
from .clock import Stopwatch
from .networks import method
from .outputs import Kept
from .record import Record, Sampling
from .solver.choose import GIVEN, Choice, extra_of, same
from .standin import StandIn, put, take

# What stands between a pipeline's loop and its networks.
_LIBRARIES = frozenset(
    ("adaptive_kernels", "torch", "diffusers", "accelerate", "peft", "contextlib", "functools")
)
# What step() must be given, in this order where its parameters have no names of their own.
_ORDER = ("model_output", "timestep", "sample")
_NAMES = frozenset(_ORDER)


class _Local(threading.local):
    """The generations that a thread is in, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Generation] = []


_LOCAL = _Local()


def active() -> "Generation | None":
    """The generation that this thread is in."""
    stack = _LOCAL.stack
    return stack[-1] if stack else None


class Generation:
    """From the opening of a pipeline's progress bar to its closing, whatever closes it.

    Only between the two does anything stand in for a method of its scheduler and its networks, and
    only for the loop's own calls: those of the same thread, from the pipeline's code.
    """

    def __init__(self, pipe: Any, networks: dict, config: AdaptiveConfig, record: Record):
        self.scheduler, self.config, self.record = pipe.scheduler, config, record
        self.names = {id(module): name for name, module in networks.items()}
        self.networks = networks
        self._names = _parameters(type(self.scheduler))
        self.watch = Stopwatch()
        # The loop that is running: id of the frame that opened its bar; the frame itself, lest
        # another one takes the id; whether the bar is iterated over.
        self.loop: tuple[int, Any, bool] = (0, None, False)
        modules = {base.__module__ for base in type(pipe).__mro__}
        self._own = modules | {m.partition(".")[0] for m in modules} - {"__main__"}
        self._libraries: dict[int, bool] = {}  # by id of a module's names
        self._standins: list[StandIn] = []
        self._forget()

    def open(self) -> None:
        self.record.began = time.perf_counter()
        try:
            self._standins.append(put(self.scheduler, "step", _step))
            self._standins.append(put(self.scheduler, "set_timesteps", _set_timesteps))
            for module in self.networks.values():
                self._standins.append(put(module, method(module), _call))
        except BaseException:
            self._release()
            raise
        _LOCAL.stack.append(self)

    def close(self) -> None:
        """Ends it, once; a skip that was pending is forgotten."""
        self.loop = (0, None, False)
        if self in _LOCAL.stack:
            _LOCAL.stack.remove(self)
        if self._standins:
            self._release()
            # Its last wait for the device comes first.
            self._forget()
            self.record.network_seconds = self.watch.seconds()
            self.record.seconds = time.perf_counter() - self.record.began

    def _release(self) -> None:
        while self._standins:
            take(self._standins.pop())

    def _forget(self) -> None:
        """Back to the state before a sampling's first step."""
        for sampling in self.record.samplings[-1:]:
            sampling.end()
        self.solver = None
        self.sampling: Sampling | None = None
        self._extra: dict = {}
        self._steps_itself = False
        self._step_index: int | None = None
        self._scales: list[float] | None = None
        self._timesteps: list[float] | None = None
        self._kept: dict[tuple[int, int], Kept] = {}
        self._counts: dict[int, int] = {}
        self._skip: bool | None = None
        self._served = self._ran = self._refreshes = 0
        self._latents: tuple | None = None  # shape of what a network was called with

    # What the pipeline's calls come to.

    def call(self, standin: StandIn, args: tuple, kwargs: dict) -> Any:
        """A network's call: its last raw output at a skipped step, else the network itself."""
        if not self._own_call():
            return standin.original(*args, **kwargs)
        module = id(standin.owner)
        count = self._counts.get(module, 0)
        self._counts[module] = count + 1
        kept = self._kept.get((module, count))
        if self._skip is None:
            self._skip = self._may_skip()
        if self._skip:
            if kept is not None and kept.serves(args, kwargs, self._refreshes):
                self._served += 1
                self.record.skipped[self.names[module]] += 1
                return kept.output()
            # What is asked has changed: where nothing was served yet, the step is a refresh.
            self._skip = self._served > 0
        latents = outputs.sample(args, kwargs)
        began = self.watch.begin(latents)
        output = standin.original(*args, **kwargs)
        self.watch.end(began, latents)
        self._ran += 1
        self.record.made[self.names[module]] += 1
        if kept is None:
            kept = self._kept[module, count] = Kept()
        kept.keep(output, args, kwargs, self._refreshes + 1)
        if self._latents is None and latents is not None:
            self._latents = tuple(latents.shape)
        return output

    def _own_call(self) -> bool:
        """Whether it is the loop that calls: not a callback, nor somebody after its end."""
        frame = sys._getframe(4)  # the caller of the stand-in
        opener, _, iterated = self.loop
        known = self._libraries
        while frame is not None:
            if id(frame) == opener:
                return True
            names = frame.f_globals
            if not (known.get(id(names)) or self._is_library(names)):
                # A function of the user's, or the bar was opened elsewhere.
                return not iterated and not self._above(frame)
            frame = frame.f_back
        return not iterated

    def _is_library(self, names: dict) -> bool:
        """Whether a module's names are those of the pipeline or of what it is built on."""
        known = self._libraries.get(id(names))
        if known is None:
            module = names.get("__name__", "")
            root = module.partition(".")[0]
            known = root in _LIBRARIES or root in self._own or module in self._own
            self._libraries[id(names)] = known
        return known

    def _above(self, frame: Any) -> bool:
        """Whether the bar was opened by a frame further up."""
        while frame is not None:
            if id(frame) == self.loop[0]:
                return True
            frame = frame.f_back
        return False

    def _may_skip(self) -> bool:
        solver = self.solver
        if solver is None or solver.buffers.row >= solver.rows:
            return False
        return not solver.buffers.decision.fresh()

    def step(self, standin: StandIn, args: tuple, kwargs: dict) -> Any:
        """The scheduler's step()."""
        given = dict(zip(self._names, args, strict=False))
        given.update(kwargs)
        if not given.keys() >= _NAMES:
            self._note("its step() is called in a way that nobody understands")
            return standin.original(*args, **kwargs)
        served, ran = self._served, self._ran
        self._served = self._ran = 0
        self._counts.clear()
        self._skip = None
        anew = self._anew(given)
        if anew is not None:
            self._begin(given, anew)
        solver = self.solver
        # Fresh is what the networks have just made: all of it, or nobody was asked at all.
        fresh = not served
        self._refreshes += fresh
        result = solver.step(
            lambda: standin.original(*args, **kwargs), given, fresh or anew is not None
        )
        if self._step_index is not None:
            self.scheduler._step_index = self._step_index + solver.buffers.row
        self.sampling.fresh.append(fresh)
        if served and (ran or anew is not None):
            # Half of it was of another time: the next step makes up for it.
            self._skip = False
        return result

    def _begin(self, given: dict[str, Any], why: str) -> None:
        """A sampling's first step; why: there was another one that it does not go on with."""
        before = self.sampling
        samples = _samples(given["sample"], self._latents)
        choice = Choice(self.scheduler, self.config, given, samples)
        self.solver, self._extra = choice.solver, choice.extra
        self._steps_itself = choice.table is None
        follows = choice.table is not None and hasattr(self.scheduler, "_step_index")
        self._step_index = choice.begin if follows else None
        self._scales = choice.scales
        if self._scales is not None:
            self._standins.append(put(self.scheduler, "scale_model_input", _scale))
        self._timesteps = None
        if choice.table is not None and not follows:
            self._timesteps = choice.table.timesteps.tolist()
        buffers = choice.solver.buffers
        self.sampling = Sampling(
            type(self.scheduler).__name__,
            *(choice.config, choice.notes, choice.hints, choice.solver.rows),
            samples=buffers.state.index.shape[0],
            stages=buffers.decision.stages,
            buffers=buffers,
        )
        if why:
            self._note(f"a sampling began anew at its step {len(before.fresh)}, as {why}")
        if before is not None:
            before.end()
        self.record.samplings.append(self.sampling)

    def _note(self, text: str) -> None:
        notes = self.record.notes if self.sampling is None else self.sampling.notes
        if text not in notes:
            notes.append(text)

    def _anew(self, given: dict[str, Any]) -> str | None:
        """None where the step goes on with the sampling at hand; else what is not as in it."""
        solver = self.solver
        if solver is None or solver.buffers.row >= solver.rows:
            return ""
        if given["sample"].shape != solver.buffers.shape:
            return "the latents have another shape"
        if self._steps_itself:
            # It goes on whatever it is given.
            return None
        if (self._extra or not given.keys() <= GIVEN) and not same(extra_of(given), self._extra):
            return "step() is given other arguments"
        if self._timesteps is None:
            # A scheduler that counts its steps does not look at the timestep.
            return None
        row, timestep = solver.buffers.row, given["timestep"]
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            # No read of the device: pipelines hand on the schedule's own elements.
            live = self.scheduler.timesteps
            offset = timestep.data_ptr() - live.data_ptr()
            at = len(live) - len(self._timesteps) + row
            if offset == at * live.element_size():
                return None
            # Copies of them, one of which is looked at.
            if float(timestep) == self._timesteps[row]:
                self._timesteps = None
                return None
        if float(timestep) == self._timesteps[row]:
            return None
        return "step() is given another timestep than comes next"

    def scale_model_input(self, standin: StandIn, args: tuple, kwargs: dict) -> Any:
        if self._scales is None or self.solver.buffers.row >= self.solver.rows:
            return standin.original(*args, **kwargs)
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        return sample * self._scales[self.solver.buffers.row]

    def set_timesteps(self, standin: StandIn, args: tuple, kwargs: dict) -> Any:
        self._forget()
        return standin.original(*args, **kwargs)

    def pause(self) -> None:
        """The end of a loop within the loop."""
        self._forget()


def _of_scheduler(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of stand-ins on a scheduler: the generation's own, in its thread, or plain."""

    def handle(standin: StandIn, args: tuple, kwargs: dict) -> Any:
        generation = active()
        if generation is None or generation.scheduler is not standin.owner:
            return standin.original(*args, **kwargs)
        return verb(generation, standin, args, kwargs)

    return handle


_step = _of_scheduler(Generation.step)
_set_timesteps = _of_scheduler(Generation.set_timesteps)
_scale = _of_scheduler(Generation.scale_model_input)


def _call(standin: StandIn, args: tuple, kwargs: dict) -> Any:
    """The same of a network."""
    generation = active()
    if generation is None or id(standin.owner) not in generation.names:
        return standin.original(*args, **kwargs)
    return generation.call(standin, args, kwargs)


@functools.cache
def _parameters(scheduler: type) -> tuple[str, ...]:
    parameters = inspect.signature(scheduler.step).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return _ORDER
    return tuple(p.name for p in parameters)[1:]


def _samples(sample: Any, network: tuple | None) -> int:
    """How many samples the rows of step()'s latents are: F frames may be flattened into rows.

    network: the shape of the latents that the network was called with.
    """
    rows = sample.shape[0]
    if network is None or len(network) != 5 or sample.dim() != 4:
        return rows
    channels, *size = sample.shape[1:]
    for axis, other in ((2, 1), (1, 2)):
        frames = network[axis]
        if network[other] == channels and list(network[3:]) == size and rows % frames == 0:
            return rows // frames
    return rows
