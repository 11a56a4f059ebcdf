"""The table of a pipeline's scheduler as it stands, kept for the next generation."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...solvers.scheduler import UnsupportedSchedulerError
from ...solvers.table import SolverTable
from ..standin import StandIn

# What a run leaves in a scheduler, and set_timesteps() or the next run puts right.
_LEFT = frozenset(
    (
        *("model_outputs", "timestep_list", "last_sample", "this_order", "lower_order_nums"),
        *("ets", "cur_sample", "cur_model_output", "counter"),
        *("sample", "derivatives", "derivative", "prev_derivative", "dt", "noise_sampler"),
    )
)
_MOST = 32
_LOCK = threading.Lock()
_TABLES: OrderedDict[tuple, SolverTable | UnsupportedSchedulerError] = OrderedDict()


def table_of(scheduler: Any, begin: int, step_kwargs: Mapping[str, Any]) -> SolverTable:
    """`SolverTable.from_prepared`, made once for all that the scheduler's state says.

    Raises: UnsupportedSchedulerError, every time the same.
    """
    key = fingerprint(scheduler, begin, step_kwargs)
    with _LOCK:
        found = _TABLES.get(key)
        if found is not None:
            _TABLES.move_to_end(key)
    if found is None:
        try:
            found = SolverTable.from_prepared(scheduler, begin_index=begin, step_kwargs=step_kwargs)
        except UnsupportedSchedulerError as error:
            found = error.with_traceback(None)
        with _LOCK:
            _TABLES[key] = found
            while len(_TABLES) > _MOST:
                _TABLES.popitem(last=False)
    if isinstance(found, UnsupportedSchedulerError):
        raise UnsupportedSchedulerError(*found.args)
    return found


def fingerprint(scheduler: Any, begin: int, step_kwargs: Mapping[str, Any]) -> tuple:
    """All that decides a table: the class, and every value the scheduler holds."""
    state = {name: value for name, value in vars(scheduler).items() if name not in _LEFT}
    return type(scheduler), begin, _frozen(step_kwargs), _frozen(state)


def _frozen(value: Any) -> Any:
    """A hashable copy of a value; what is not data is itself."""
    if isinstance(value, Tensor):
        # One read of the device, where a scheduler's timesteps live, per generation.
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return str(value.dtype), tuple(value.shape), data.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if v is not None and not isinstance(v, StandIn)}
        return tuple((key, _frozen(kept[key])) for key in sorted(kept, key=str))
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, (set, frozenset)):
        return tuple(sorted(map(repr, value)))
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _on_cpu(value: Any) -> Tensor:
    """float64; on the CPU first, as not every device has it."""
    there = value.cpu() if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
    return there.double()


def first_rows(scheduler: Any, timestep: Any) -> list[int]:
    """The rows of the schedule that a first step at this timestep may stand for.

    One where the scheduler knows; several where a timestep comes twice and it does not (PNDM).
    """
    for name in ("_step_index", "_begin_index"):
        index = getattr(scheduler, name, None)
        if index is not None:
            return [int(index)] if index < len(scheduler.timesteps) else []
    timesteps, at = _on_cpu(scheduler.timesteps), _on_cpu(timestep)
    if at.numel() != 1:
        return []
    rows = (timesteps == at.reshape(())).nonzero()[:, 0].tolist()
    own = getattr(scheduler, "index_for_timestep", None)
    return [int(own(timestep))] if own is not None and len(rows) > 1 else rows
