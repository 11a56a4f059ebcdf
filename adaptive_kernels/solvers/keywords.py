"""Keyword arguments that a function hands on to a scheduler, refused where nobody knows them."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

# Of `SolverTable.from_scheduler`, by those that pass them on.
_TABLE = ("step_kwargs", "strength", "begin_index")


def known_keywords(function: Callable, scheduler: Any, given: Iterable[str]) -> None:
    """Raise TypeError for a keyword that neither `function` nor the scheduler takes.

    Args:
        function: what the user called; its ``**`` argument is what was `given`.
        scheduler: its set_timesteps() takes the rest; a `SolverTable` has none.
    """
    set_timesteps = getattr(scheduler, "set_timesteps", None)
    taken = inspect.signature(set_timesteps).parameters if callable(set_timesteps) else {}
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    free = sorted(set(taken) - {"self", "device", "num_inference_steps"})
    own = [
        p.name for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD
    ]
    for name in given:
        if name in free or name in _TABLE:
            continue
        also = ""
        if callable(set_timesteps):
            also = f", nor has {type(scheduler).__name__}.set_timesteps()"
            also += f", which takes {', '.join(free)}" if free else ""
        close = difflib.get_close_matches(name, [*own, *_TABLE, *free], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise TypeError(f"{function.__qualname__} has no argument {name!r}{also}{hint}")
