"""What settings were found on, so that they are not taken for settings of anything else."""

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..solvers.table import SolverTable

# Parameters of which a weight is kept.
SAMPLED = 16
# Copies that diffusers' fuse_qkv_projections() makes of other parameters.
_FUSED = {"to_qkv", "to_kv", "to_added_qkv"}
# Half precision rounds a weight by up to 2^-9 of it.
TOLERANCE, TINY = 2.0**-7, 1e-6


@dataclass(frozen=True, repr=False)
class Origin:
    """The solver and the network that settings were found on; None where it is not known.

    Args:
        scheduler: name of the scheduler's class. num_steps: rows of its whole table.
        prediction: what the network predicts, as `SolverTable.levels` has it.
        parameters: of the network, their number.
        weights: some of them; the same network in half precision has them too. None: not known.

    Raises: TypeError naming the argument.
    """

    scheduler: str | None = None
    num_steps: int | None = None
    prediction: str | None = None
    parameters: int | None = None
    weights: tuple[float | None, ...] = ()

    def __post_init__(self):
        kinds = {"scheduler": str, "num_steps": int, "prediction": str, "parameters": int}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise TypeError(f"origin.{name} must be {kind.__name__} or None, got {value!r}")
        ok = isinstance(self.weights, (list, tuple))
        if not ok or not all(v is None or isinstance(v, numbers.Real) for v in self.weights):
            raise TypeError(f"origin.weights must be numbers, got {self.weights!r}")
        weights = tuple(None if v is None else float(v) for v in self.weights)
        object.__setattr__(self, "weights", weights)

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
            elif not _alike(weights, self.weights):
                other = f"a network of as many parameters ({parameters:,}) and other weights"
            else:
                return []
            found = found or [other]
        return found


def _of_network(model: Any) -> tuple[int | None, tuple[float | None, ...]]:
    """Number of parameters and some weights."""
    if not isinstance(model, torch.nn.Module):
        model = getattr(model, "network", None)
    if not isinstance(model, torch.nn.Module):
        return None, ()
    named = [(name.split("."), p) for name, p in model.named_parameters()]
    parameters = [p for parts, p in named if not _FUSED & set(parts) and p.numel()]
    last = max(len(parameters) - 1, 0)
    places = sorted({round(k * last / (SAMPLED - 1)) for k in range(SAMPLED)})
    weights = tuple(_weight(parameters[place]) for place in places) if parameters else ()
    return sum(p.numel() for p in parameters), weights


def _weight(parameter: torch.Tensor) -> float | None:
    """One of a parameter's, None where it cannot be compared."""
    # Quantised ones are packed or rounded, each in a way of its own.
    if not parameter.is_floating_point() or parameter.itemsize == 1:
        return None
    try:
        flat = parameter.detach().reshape(-1)
        return float(flat[5 * len(flat) // 7])
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None  # without values here: offloaded, sharded, not made yet


def _alike(one: tuple[float | None, ...], other: tuple[float | None, ...]) -> bool:
    """Whether weights are the same as far as both are known."""
    known = [pair for pair in zip(one, other, strict=False) if None not in pair]
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + TINY for a, b in known)
