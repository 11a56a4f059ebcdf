"""Keyword arguments that a function hands on to a scheduler, refused where nobody knows them."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

# Of `SolverTable.from_scheduler`, by those that pass them on.
_TABLE = ("step_kwargs", "strength", "strength_rounding", "begin_index")


def known_keywords(function: Callable, scheduler: Any, given: Iterable[str]) -> None:
    """Raise TypeError for a keyword that neither `function` nor the scheduler takes.

    Args:
        function: what the user called; its ``**`` argument is what was `given`.
        scheduler: its set_timesteps() takes the rest. A `SolverTable` has none, and then only what
            looks like a misspelt argument of `function` is refused here.
    """
    set_timesteps = getattr(scheduler, "set_timesteps", None)
    found = inspect.signature(set_timesteps).parameters if callable(set_timesteps) else {}
    anything = any(p.kind is p.VAR_KEYWORD for p in found.values())
    free = sorted(set(_named(found)) - {"self", "device", "num_inference_steps"})
    own = _named(inspect.signature(function).parameters)
    for name in given:
        # Devices are the package's own business, whatever the scheduler takes.
        if name in _TABLE or name in free or (anything and name != "device"):
            continue
        close = difflib.get_close_matches(name, [*own, *_TABLE, *free], n=1)
        also = ""
        if callable(set_timesteps):
            also = f", nor has {type(scheduler).__name__}.set_timesteps()"
            also += f", which takes {', '.join(free)}" if free else ""
        elif not close:
            continue
        hint = f"; did you mean {close[0]}?" if close else ""
        raise TypeError(f"{function.__qualname__} has no argument {name!r}{also}{hint}")


def _named(parameters: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in parameters.items() if parameter.kind in kinds]
