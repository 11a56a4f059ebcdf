"""The progress bar of a call, and what stands for it where none is shown."""

import contextlib
from typing import Any

from tqdm.auto import tqdm


class NoBar:
    """A bar that shows nothing; tqdm's own, disabled, costs as much as ten operators."""

    disable = True
    n = 0

    def update(self, n: float = 1) -> None:
        """Nothing to show."""


def bar_of(steps: int, shown: bool) -> contextlib.AbstractContextManager[Any]:
    """A bar over the solver steps of all samples."""
    return tqdm(total=steps, unit="step") if shown else contextlib.nullcontext(NoBar())
