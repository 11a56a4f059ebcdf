"""Whose call of a network it is: the loop's own, or somebody else's who shares the network."""

import sys
from typing import Any

# What stands between a pipeline's loop and its networks.
_LIBRARIES = frozenset(
    ("adaptive_kernels", "torch", "diffusers", "accelerate", "peft", "contextlib", "functools")
)


class Caller:
    """Tells the loop's calls from those of callbacks, and from those after an iteration's end.

    Args:
        pipe: whose modules, and those of its package, are the loop's own.
    """

    def __init__(self, pipe: Any):
        # The loop that is running: id of the frame that opened its bar; the frame itself, lest
        # another one takes the id; whether the bar is iterated over.
        self.loop: tuple[int, Any, bool] = (0, None, False)
        modules = {base.__module__ for base in type(pipe).__mro__}
        self._own = modules | {m.partition(".")[0] for m in modules} - {"__main__"}
        self._libraries: dict[int, bool] = {}  # by id of a module's names

    def is_loop(self, depth: int) -> bool:
        """Whether the function `depth` frames above the one that asks is called by the loop."""
        frame = sys._getframe(1 + depth)
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
