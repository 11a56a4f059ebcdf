"""What a scheduler's own step gives back: its kind, its dtype, and whether our table agrees."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...solvers.table import SolverTable

# Largest difference between the table's first step and the scheduler's own, in units of the largest
# latent: rounding, and in half precision that of what is handed back.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Returns:
    """What to make of new latents: step()'s tuple, or its output class."""

    output_class: type | None  # None: step() gives tuples whatever is asked
    names: tuple[str, ...]
    default: bool  # of return_dict
    dtype: torch.dtype  # of the latents
    estimate_dtype: torch.dtype | None  # of the second value; None: there is none
    scales: bool = True  # whether its scale_model_input() needs no help

    def make(self, values: tuple[Tensor | None, ...], return_dict: bool | None) -> Any:
        """What step() returns: values are the latents and, where there is one, the estimate."""
        wanted = self.default if return_dict is None else return_dict
        if wanted and self.output_class is not None:
            return self.output_class(**dict(zip(self.names, values, strict=False)))
        return values


class _NoNoise(TorchFunctionMode):
    """Zeros for whatever a scheduler draws: no generator moves."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = None
        if func is torch.randn:
            kwargs = {k: v for k, v in (kwargs or {}).items() if k != "generator"}
            out = torch.zeros(*args, **kwargs)
        elif func is torch.randn_like:
            out = torch.zeros_like(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if out is None else out


class Disagreement(ValueError):
    """The table's first step is not the scheduler's own; the message says in what."""


def own_step(
    scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, extra: Mapping[str, Any]
) -> tuple[Returns, Tensor]:
    """How the scheduler answers and its own first x_{i+1} without noise, from a copy of it.

    scheduler: at its first step; it stays as it is. extra: step()'s other arguments but
    generator and return_dict.
    """
    parameters = inspect.signature(type(scheduler).step).parameters
    default = parameters["return_dict"].default if "return_dict" in parameters else None
    fed = {"model_output": model_output, "timestep": timestep, "sample": sample, **extra}
    with _NoNoise():
        result = copy.deepcopy(scheduler).step(**fed)
    output_class, names = None, ("prev_sample",)
    if isinstance(result, tuple):
        values = result
        if default is not None:
            with _NoNoise():
                other = copy.deepcopy(scheduler).step(**fed, return_dict=not default)
            result = other if not isinstance(other, tuple) else result
    if not isinstance(result, tuple):
        output_class, names = type(result), tuple(result.keys())
        values = tuple(result.values())
    if len(values) > 2 or not all(isinstance(v, (Tensor, type(None))) for v in values):
        kinds = ", ".join(type(v).__name__ for v in values)
        raise Disagreement(
            f"its step() returns {kinds}, where a table knows the latents and an estimate"
        )
    estimate = values[1] if len(values) > 1 and isinstance(values[1], Tensor) else None
    returns = Returns(
        output_class,
        names,
        bool(default),
        values[0].dtype,
        None if estimate is None else estimate.dtype,
    )
    return returns, values[0]


def own_scales(scheduler: Any, table: SolverTable) -> bool:
    """Whether scale_model_input() gives c_i x at every row once the scheduler knows its step index.

    KDPM2's looks at what its own step() has left besides. scheduler: at its first step.
    """
    twin = copy.deepcopy(scheduler)
    one = torch.ones(1, 1, 1, 1, device=twin.timesteps.device)
    if not hasattr(twin, "scale_model_input"):
        return True
    # A schedule may end with the level of the result, which has no row.
    for row, timestep in enumerate(twin.timesteps[table.begin :][: table.num_steps]):
        if hasattr(twin, "_step_index"):
            twin._step_index = table.begin + row
        scale = float(type(twin).scale_model_input(twin, one, timestep))
        if abs(scale - float(table.input_scale[row])) > 1e-5 * abs(scale):
            return False
    return True


def check(table: SolverTable, model_output: Tensor, sample: Tensor, own: Tensor) -> None:
    """Raise Disagreement unless the table's first row without noise gives what the scheduler gave.

    All tensors of one shape; one read of the device.
    """
    p, q, A, C = (float(v) for v in (table.p[0], table.q[0], table.A[0], table.C[0, 0]))
    x, m = sample.double(), model_output.double()
    ours = A * x + C * (p * x + q * m)
    size = (abs(A + C * p) * x.abs() + abs(C * q) * m.abs()).amax()
    error = ((ours - own.double()).abs().amax() / size.clamp(min=1e-30)).item()
    allowed = _TOLERANCE + 4 * max(torch.finfo(t.dtype).eps for t in (own, model_output))
    # NaN passes: a network that gives it gives it to both.
    if error > allowed:
        raise Disagreement(
            f"its own first step and the table's differ by {error:.1e} of the latents' size"
        )
