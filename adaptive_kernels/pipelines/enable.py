"""`enable_adaptive`, `disable_adaptive` and `adaptive`: two lines for a pipeline."""

import contextlib
import copy
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from ..rules.config import AdaptiveConfig
from .generation import Generation, active
from .networks import check_pipeline, find, names_of
from .record import Record
from .standin import NOTHING, StandIn, take


class Adaptive(StandIn):
    """Stands in for a pipeline's `progress_bar`, which opens and closes its loop.

    The only thing that an enabled pipeline has on it between generations.
    """

    def __init__(self, pipe: Any, config: AdaptiveConfig, networks: tuple[str, ...] | None):
        super().__init__(pipe, "progress_bar", _progress_bar)
        self.config, self.networks = config, networks
        self.last: Record | None = None
        self.generations = self.made = self.skipped = 0
        self.told: set = set()
        self.notes: list[str] = []  # why calls were none that could be followed

    def __deepcopy__(self, memo: dict) -> "Adaptive":
        # A copied pipeline is enabled as its original is, with a state of its own.
        twin = Adaptive(copy.deepcopy(self.owner, memo), self.config, self.networks)
        if self.before is not NOTHING:
            twin.before = twin.original = copy.deepcopy(self.before, memo)
        return twin

    def __reduce__(self) -> tuple:
        return Adaptive, (self.owner, self.config, self.networks)

    def generation(self) -> Generation:
        """A new generation, with the scheduler and networks that the pipeline has now."""
        pipe = self.owner
        networks = find(pipe, self.networks)
        self.last = Record(type(pipe).__name__, self.config, tuple(networks))
        return Generation(pipe, networks, self.config, self.last)

    def ended(self, record: Record, whole: bool) -> None:
        """Counts a generation; one that ran to its end and skipped nothing is told, once a way."""
        self.generations += 1
        self.made += sum(record.made.values())
        self.skipped += sum(record.skipped.values())
        reason = record.nothing_skipped() if whole else None
        if reason is not None:
            way = (record.config, *((s.scheduler, s.rows) for s in record.samplings))
            more = [part for s in record.samplings[-1:] for part in (*s.notes, *s.hints)]
            reason = "; ".join([reason, *more])
            self._tell(way, f"{record.pipeline}: nothing was skipped: {reason}")
            return
        notes = [note for sampling in record.samplings for note in sampling.notes]
        few = record.few_skips() if whole else None
        if few is not None:
            way = (record.config, record.samplings[-1].scheduler, record.samplings[-1].rows)
            self._tell(way, f"{record.pipeline}: {few}")
        for note in [*record.notes, *notes]:
            self._tell(note, f"{record.pipeline}: {note}")

    def tell_unopened(self) -> None:
        """Says that the pipeline's loop is none that can be followed."""
        note = "nothing was skipped: its progress bar is no context of its loop"
        self.notes = [note]
        self._tell(note, f"{type(self.owner).__name__}: {note}")

    def _tell(self, key: object, message: str) -> None:
        if key not in self.told:
            self.told.add(key)
            warnings.warn(message, RuntimeWarning, stacklevel=_users_frame())


def _users_frame() -> int:
    """How many frames above the caller the first one stands that is no library's."""
    libraries, level = {"adaptive_kernels", "diffusers", "torch", "contextlib"}, 1
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in libraries:
        frame, level = frame.f_back, level + 1
    return level


def of(pipe: Any) -> Adaptive | None:
    """The stand-in of an enabled pipeline."""
    found = getattr(pipe, "__dict__", {}).get("progress_bar")
    return found if isinstance(found, Adaptive) else None


class _Bar:
    """A progress bar that opens a generation with its loop and closes it with it.

    A bar within a bar of the same pipeline belongs to the generation at hand.
    """

    def __init__(self, bar: Any, adaptive: Adaptive, frame: int):
        self._bar, self._adaptive, self._frame = bar, adaptive, frame
        self._generation: Generation | None = None
        self._outer: tuple | None = None  # the loop around this one

    def __enter__(self) -> Any:
        # Kept while the loop lasts: it tells of its end.
        frame = sys._getframe(1)
        return self._enter((id(frame), frame, False))

    def _enter(self, loop: tuple) -> Any:
        generation = active()
        if generation is not None and generation.record is self._adaptive.last:
            self._outer = generation.caller.loop
        else:
            generation = self._adaptive.generation()
            generation.open()
        self._generation = generation
        generation.caller.loop = loop
        return self._bar.__enter__()

    def __exit__(self, *error: Any) -> Any:
        generation, self._generation = self._generation, None
        if self._outer is not None:
            generation.forget()
            generation.caller.loop = self._outer
        else:
            generation.close()
        handled = self._bar.__exit__(*error)
        # Last: a warning may be an error.
        if self._outer is None:
            self._adaptive.ended(generation.record, error[0] is None)
        return handled

    def __iter__(self) -> Iterator:
        # Not kept: it holds this iterator, and what lets go of it ends the loop.
        self._enter((self._frame, None, True))
        try:
            yield from self._bar
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        self.__exit__(None, None, None)

    def update(self, *args: Any) -> Any:
        if self._generation is None:
            self._adaptive.tell_unopened()
        return self._bar.update(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def _progress_bar(standin: Adaptive, args: tuple, kwargs: dict) -> _Bar:
    return _Bar(standin.original(*args, **kwargs), standin, id(sys._getframe(2)))


def enable_adaptive(
    pipe: Any, config: AdaptiveConfig | None = None, *, networks: Sequence[str] | None = None
) -> Any:
    """Makes a diffusers pipeline call its networks only where the latents ask for it.

    The pipeline stays what it is: while its loop runs, and only then, something stands in for
    ``scheduler.step`` and for the networks' ``forward``. A skipped step runs no network. All
    samples of a call decide together: when one asks for a refresh, all take it, so the decisions of
    a batch are not those of its samples alone.

    Args:
        pipe: a pipeline that steps a scheduler (Stable Diffusion, SDXL, AnimateDiff, ...).
        config: criterion, threshold and limits; None: the recommended ones. A pipeline that is
            enabled already takes the new ones from its next call on.
        networks: names of the components that are called once or more in every step; None: those
            that diffusers calls unet, transformer, prior, decoder or controlnet.

    Returns: the pipe.
    Raises: TypeError, ValueError naming the argument; nothing was changed then.
    Source: AdaptiveDiffusion, arXiv 2410.09873, whose pipelines are copies of diffusers'.
    """
    if config is not None and not isinstance(config, AdaptiveConfig):
        raise TypeError(f"config must be an AdaptiveConfig, got {type(config).__name__}")
    check_pipeline(pipe)
    names = names_of(networks)
    find(pipe, names)
    config = AdaptiveConfig.recommended() if config is None else config
    standing = of(pipe)
    if standing is not None:
        standing.config, standing.networks = config, names
    else:
        vars(pipe)["progress_bar"] = Adaptive(pipe, config, names)
    return pipe


def disable_adaptive(pipe: Any) -> Any:
    """Gives a pipeline back as it was before `enable_adaptive`, to the last attribute.

    Returns: the pipe. Raises: ValueError where it is not enabled.
    """
    take(enabled(pipe))
    return pipe


def enabled(pipe: Any) -> Adaptive:
    """The stand-in of a pipeline. Raises: ValueError where it has none."""
    standing = of(pipe)
    if standing is None:
        raise ValueError(
            f"pipe must be enabled (enable_adaptive, or within adaptive), got a plain "
            f"{type(pipe).__name__}"
        )
    return standing


@contextlib.contextmanager
def adaptive(
    pipe: Any, config: AdaptiveConfig | None = None, *, networks: Sequence[str] | None = None
) -> Iterator[Any]:
    """``with adaptive(pipe, config):`` enables a pipeline as `enable_adaptive` does, for a while.

    Afterwards it is as it was: plain, or enabled with what it had.
    """
    standing = of(pipe)
    before = None if standing is None else (standing.config, standing.networks)
    enable_adaptive(pipe, config, networks=networks)
    try:
        yield pipe
    finally:
        standing = of(pipe)
        if before is not None and standing is not None:
            standing.config, standing.networks = before
        elif before is None and standing is not None:
            disable_adaptive(pipe)
