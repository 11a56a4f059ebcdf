"""One run of a pipeline's loop: which calls reach the networks, and who steps the solver."""

import threading
import time
from collections.abc import Callable
from typing import Any

from ..rules.config import AdaptiveConfig
from ..rules.precision import computing_dtype, largest_noise
from .caller import Caller
from .calls import Calls
from .networks import dtype_of, guidance_of, method
from .record import Record, Sampling
from .solver.arguments import NEEDED, parameters, samples_of
from .solver.choose import Choice
from .solver.course import Course
from .standin import StandIn, put, take


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
        self.pipe, self.scheduler = pipe, pipe.scheduler
        self.config, self.record = config, record
        self.networks, self.caller = networks, Caller(pipe)
        names = {id(module): name for name, module in networks.items()}
        self.calls = Calls(names, record, self._may_skip)
        self._names = parameters(type(self.scheduler))
        self._standins: list[StandIn] = []
        self.sampling: Sampling | None = None
        self.course: Course | None = None
        self.solver: Any = None

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
        self.caller.loop = (0, None, False)
        if self in _LOCAL.stack:
            _LOCAL.stack.remove(self)
        if self._standins:
            self._release()
            # Its last wait for the device comes first.
            self.forget()
            self.record.network_seconds = self.calls.seconds()
            self.record.seconds = time.perf_counter() - self.record.began

    def _release(self) -> None:
        while self._standins:
            take(self._standins.pop())

    def forget(self) -> None:
        """Ends the sampling at hand: the next step begins another one."""
        if self.sampling is not None:
            self.sampling.end()
        self.sampling = self.course = self.solver = None
        self.calls.forget()

    def _may_skip(self) -> bool:
        return self.course is not None and self.course.may_skip()

    # What the pipeline's calls come to.

    def call(self, standin: StandIn, args: tuple, kwargs: dict) -> Any:
        """A network's call."""
        if self.caller.is_loop(3):
            return self.calls.answer(standin, args, kwargs)
        return standin.original(*args, **kwargs)

    def step(self, standin: StandIn, args: tuple, kwargs: dict) -> Any:
        """The scheduler's step()."""
        given = dict(zip(self._names, args, strict=False))
        given.update(kwargs)
        if not given.keys() >= NEEDED:
            self._note("its step() is called in a way that nobody understands")
            return standin.original(*args, **kwargs)
        changed = "" if self.course is None else self.course.changed(given)
        if changed is not None:
            self._begin(given, changed)
        fresh = self.calls.end_step()
        if changed and not fresh:
            # What the networks were served is of another sampling.
            self.calls.refresh_next()
        result = self.solver.step(
            lambda: standin.original(*args, **kwargs), given, fresh or changed is not None
        )
        self.course.show()
        self.sampling.fresh.append(fresh)
        return result

    def _begin(self, given: dict[str, Any], why: str) -> None:
        """A sampling's first step; why: there was another one that it does not go on with."""
        before = self.sampling
        samples = samples_of(given["sample"], self.calls.latents)
        latents = self.calls.latents
        doubled = latents is not None and latents[0] > given["sample"].shape[0]
        guided = bool(getattr(self.pipe, "do_classifier_free_guidance", doubled))
        scale = guidance_of(self.pipe) if guided else None
        dtype = computing_dtype(dtype_of(self.networks), given["sample"].device)
        most = largest_noise(self.config.output_noise, dtype, scale)
        choice = Choice(self.scheduler, self.config, given, samples, most)
        if guided and scale is None and most and choice.config.criterion == "defect":
            choice.hints.append(
                "the guidance scale is not known: what two predictions round by is taken for what "
                "one does, and calls may be spent on the rest; output_noise= says more"
            )
        if (origin := self.config.origin) is not None:
            other = [] if choice.table is None else origin.other_solver(choice.table)
            other += origin.other_network(self.networks.values())
            if other:
                choice.notes.append(f"the config was found on {', '.join(other)}")
        self.solver = choice.solver
        self.course = Course(self.scheduler, choice)
        if choice.scales is not None:
            self._standins.append(put(self.scheduler, "scale_model_input", _scale))
        self.sampling = Sampling(
            type(self.scheduler).__name__,
            *(choice.config, choice.notes, choice.hints, choice.solver.buffers.rows),
            samples=samples,
            stages=choice.solver.buffers.decision.rule.stages,
            table=choice.table,
            buffers=choice.solver.buffers,
        )
        self.record.samplings.append(self.sampling)
        if why:
            self._note(f"a sampling began anew at its step {len(before.fresh)}, as {why}")
        if before is not None:
            before.end()

    def _note(self, text: str) -> None:
        notes = self.record.notes if self.sampling is None else self.sampling.notes
        if text not in notes:
            notes.append(text)

    def scale_model_input(self, standin: StandIn, args: tuple, kwargs: dict) -> Any:
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        scaled = None if self.course is None else self.course.scaled(sample)
        return standin.original(*args, **kwargs) if scaled is None else scaled

    def set_timesteps(self, standin: StandIn, args: tuple, kwargs: dict) -> Any:
        self.forget()
        return standin.original(*args, **kwargs)


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
    if generation is None or id(standin.owner) not in generation.calls.names:
        return standin.original(*args, **kwargs)
    return generation.call(standin, args, kwargs)
