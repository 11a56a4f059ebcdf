"""Which of the executors that work is the fastest here: measured on the samplings themselves."""

from collections.abc import Sequence

CLEARLY = 0.98  # what a later name must take of an earlier one's time to be preferred
ROUNDS = 2  # samplings of each; the best one counts, so that waking the device does not


class Fastest:
    """Tries every name in turn, then stays with the fastest per tick.

    All give the same result, so that trying costs a user nothing but the slower one's excess.

    Args:
        names: executors, the preferred first.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.times: dict[str, list[float]] = {name: [] for name in self.names}
        self._turns = self.names * ROUNDS

    @property
    def choosing(self) -> bool:
        """Whether the next sampling is a trial."""
        return bool(self._turns) and len(self.names) > 1

    def next(self) -> str:
        """The executor of the next sampling."""
        return self._turns[0] if self.choosing else self.best()

    def took(self, name: str, milliseconds: float, ticks: int) -> None:
        """What the sampling took that `next` named."""
        if self._turns:
            self._turns.pop(0)
        if ticks:
            self.times[name].append(milliseconds / ticks)

    def drop(self, name: str) -> None:
        """It does not work after all."""
        self.names.remove(name)
        self._turns = [turn for turn in self._turns if turn != name]

    def best(self) -> str:
        """The preferred name, or a later one that is clearly faster."""
        best = self.names[0]
        for name in self.names[1:]:
            if self.times[name] and self.times[best]:
                best = name if min(self.times[name]) < CLEARLY * min(self.times[best]) else best
        return best

    def measured(self) -> str:
        """The times so far, in words; empty where nothing was compared."""
        parts = [f"{n} {min(t):.3g} ms" for n, t in self.times.items() if t]
        return "per network call: " + ", ".join(parts) if len(parts) > 1 else ""
