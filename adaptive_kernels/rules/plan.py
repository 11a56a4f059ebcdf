"""A plan: which steps call the network and what every step uses, fixed before sampling."""

import math
import numbers
from dataclasses import dataclass

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """A fixed mask of network calls with a weight for each of the last three outputs, per step.

        step i uses  v_i0 e_0 + v_i1 e_1 + v_i2 e_2

    in place of the model output, all as noise predictions (as x0 predictions where the solver adds
    noise); e_0 is the newest output, the step's own where it calls the network.

    Args:
        solver: name of the scheduler's class the plan was made for.
        timesteps: [T], the scheduler's timesteps it was made for.
        refresh: [T] bool, whether the step calls the network; the first one does.
        weights: [T][3], dimensionless; those of outputs that do not exist yet are 0.
        updates: [T][3], A, C_0 q and S of each step of the solver it was made for, so that it is
            refused for another one of the same name; empty where nobody knows.

    Raises: ValueError, TypeError naming the argument.
    Source: `adaptive_kernels.calibrate` finds plans.
    """

    solver: str
    timesteps: tuple[float, ...]
    refresh: tuple[bool, ...]
    weights: tuple[tuple[float, float, float], ...]
    updates: tuple[tuple[float, float, float], ...] = ()

    def __repr__(self) -> str:
        return f"Plan({self.solver}: {self.calls} of {len(self.refresh)} calls)"

    def __post_init__(self):
        if not isinstance(self.solver, str):
            raise TypeError(f"plan.solver must be a str, got {type(self.solver).__name__}")
        object.__setattr__(self, "timesteps", _numbers("timesteps", self.timesteps))
        refresh = self.refresh
        if not (isinstance(refresh, (list, tuple)) and all(isinstance(v, bool) for v in refresh)):
            raise TypeError(f"plan.refresh must be a sequence of bool, got {refresh!r}")
        object.__setattr__(self, "refresh", tuple(refresh))
        if not isinstance(self.weights, (list, tuple)):
            raise TypeError(f"plan.weights must be a sequence, got {type(self.weights).__name__}")
        object.__setattr__(self, "weights", tuple(_numbers("weights", w) for w in self.weights))
        if not isinstance(self.updates, (list, tuple)):
            raise TypeError(f"plan.updates must be a sequence, got {type(self.updates).__name__}")
        object.__setattr__(self, "updates", tuple(_numbers("updates", u) for u in self.updates))
        steps = len(self.timesteps)
        if self.updates and (len(self.updates) != steps or {len(u) for u in self.updates} != {3}):
            raise ValueError(
                f"plan.updates must be three numbers for each of {steps} steps, got {self.updates}"
            )
        if not steps or len(refresh) != steps or len(self.weights) != steps:
            raise ValueError(
                "plan.refresh and plan.weights must have an entry per timestep "
                f"({steps}), got {len(refresh)} and {len(self.weights)}"
            )
        if not refresh[0]:
            raise ValueError("plan.refresh must call the network at the first step, got False")
        if wrong := [w for w in self.weights if len(w) != 3]:
            raise ValueError(f"plan.weights must be three numbers per step, got {wrong[0]}")

    @property
    def calls(self) -> int:
        """Network calls of a sample."""
        return sum(self.refresh)

    @property
    def max_skip(self) -> int:
        """The largest number of consecutive skipped steps."""
        longest = run = 0
        for called in self.refresh:
            run = 0 if called else run + 1
            longest = max(longest, run)
        return longest


def _numbers(name, values) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or not all(
        isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values
    ):
        raise TypeError(f"plan.{name} must hold numbers, got {values!r}")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"plan.{name} must be finite, got {values!r}")
    return tuple(float(v) for v in values)
