"""What settings were found on, so that they are not taken for settings of anything else."""

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..solvers.table import SolverTable

# Parameters of which a weight is kept.
SAMPLED = 16
# Half precision rounds a weight by up to 2^-9 of it.
TOLERANCE, TINY = 2.0**-7, 1e-6


@dataclass(frozen=True, repr=False)
class Origin:
    """The solver and the network that settings were found on; None where it is not known.

    Args:
        scheduler: name of the scheduler's class. num_steps: rows of its whole table.
        prediction: what the network predicts, as `SolverTable.levels` has it.
        parameters: of the network, their number.
        weights: some of them, in float32; the same network in half precision has them too.

    Raises: TypeError naming the argument.
    """

    scheduler: str | None = None
    num_steps: int | None = None
    prediction: str | None = None
    parameters: int | None = None
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        kinds = {"scheduler": str, "num_steps": int, "prediction": str, "parameters": int}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise TypeError(f"origin.{name} must be {kind.__name__} or None, got {value!r}")
        ok = isinstance(self.weights, (list, tuple))
        if not ok or not all(isinstance(v, numbers.Real) for v in self.weights):
            raise TypeError(f"origin.weights must be numbers, got {self.weights!r}")
        object.__setattr__(self, "weights", tuple(map(float, self.weights)))

    def __repr__(self) -> str:
        known = [] if self.parameters is None else [f"{self.parameters:,} parameters"]
        solver = f"{self.scheduler}: {self.num_steps} steps, {self.prediction}"
        return f"Origin({', '.join([solver, *known])})"

    @classmethod
    def of(cls, table: SolverTable, model: Any) -> "Origin":
        """Where settings are from that were found with a solver on a network.

        model: a module, or what holds one as its `network`; of a function nothing is known.
        """
        prediction = None if table.levels is None else table.levels.prediction
        # Image to image leaves some of the rows out.
        rows = table.begin + table.num_steps
        return cls(table.name, rows, prediction, *_of_network(model))

    def other_solver(self, table: SolverTable) -> list[str]:
        """In what a solver is another one, in words; empty where it is the same."""
        here = Origin.of(table, None)
        words = {"scheduler": "{}", "num_steps": "{} steps", "prediction": "{} prediction"}
        return [
            f"{text.format(there)} (here {text.format(now)})"
            for name, text in words.items()
            if None not in (there := getattr(self, name), now := getattr(here, name))
            and there != now
        ]

    def other_network(self, models: Iterable[Any]) -> list[str]:
        """In what networks are all another one, in words; empty where one is the same.

        Nothing is said where nothing is known, as of functions.
        """
        found: list[str] = []
        for model in models:
            parameters, weights = _of_network(model)
            if None in (self.parameters, parameters):
                return []
            if parameters != self.parameters:
                other = f"a network of {self.parameters:,} parameters (here {parameters:,})"
            elif weights and self.weights and not _alike(weights, self.weights):
                other = f"a network of as many parameters ({parameters:,}) and other weights"
            else:
                return []
            found = found or [other]
        return found


def _of_network(model: Any) -> tuple[int | None, tuple[float, ...]]:
    """Number of parameters and some weights."""
    if not isinstance(model, torch.nn.Module):
        model = getattr(model, "network", None)
    if not isinstance(model, torch.nn.Module):
        return None, ()
    parameters = list(model.parameters())
    # Quantised ones are packed, each in a way of its own.
    floating = [p for p in parameters if p.is_floating_point() and p.numel()]
    last, weights = max(len(floating) - 1, 0), []
    places = sorted({round(k * last / (SAMPLED - 1)) for k in range(SAMPLED)})
    try:
        for place in places if floating else ():
            flat = floating[place].detach().reshape(-1)
            weights.append(float(flat[5 * len(flat) // 7]))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        weights = []  # without values here: offloaded, sharded, not made yet
    return sum(p.numel() for p in parameters), tuple(weights)


def _alike(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + TINY
        for a, b in zip(one, other, strict=True)
    )
