"""What a scheduler's step() is called with: by name, the solver's own numbers, whose rows."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# What step() must be given, in this order where its parameters have no names of their own.
_ORDER = ("model_output", "timestep", "sample")
NEEDED = frozenset(_ORDER)
# What it is given anew at every step.
_GIVEN = NEEDED | {"generator", "return_dict"}


@functools.cache
def parameters(scheduler: type) -> tuple[str, ...]:
    """The names of step()'s arguments, in their order."""
    found = inspect.signature(scheduler.step).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in found):
        return _ORDER
    return tuple(p.name for p in found)[1:]


def extra_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that belong to the solver: eta, s_churn and their like."""
    if given.keys() <= _GIVEN:
        return {}
    return {key: value for key, value in given.items() if key not in _GIVEN and value is not None}


def same(extra: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both are the same numbers by name; tensors are never."""
    return extra.keys() == other.keys() and all(
        isinstance(value, (bool, int, float, str)) and value == other[name]
        for name, value in extra.items()
    )


def samples_of(sample: Tensor, network: tuple[int, ...] | None) -> int:
    """How many samples the rows of step()'s latents are: F frames may be flattened into rows.

    sample: [rows, ...]. network: the shape of the latents that the network was called with.
    """
    rows = sample.shape[0]
    if network is None or len(network) != 5 or sample.dim() != 4:
        return rows
    channels, *size = sample.shape[1:]
    for axis, other in ((2, 1), (1, 2)):
        frames = network[axis]
        if network[other] == channels and list(network[3:]) == size and rows % frames == 0:
            return rows // frames
    return rows
