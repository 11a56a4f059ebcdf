"""The solver that a sampler is given, and whether its config was found on it and its network."""

import dataclasses
import numbers
import warnings
from collections.abc import Mapping
from typing import Any

from ..rules.config import AdaptiveConfig
from ..solvers.refusals import check_scheduler
from ..solvers.scheduler import MAX_HISTORY
from ..solvers.table import SolverTable

_FIELDS = {field.name for field in dataclasses.fields(AdaptiveConfig)}


def check_kinds(scheduler: Any, config: Any, table_arguments: Mapping[str, Any]) -> None:
    """Raise TypeError for a scheduler or a config that is none, and for a config's field beside it.

    The scheduler first: who gives the network in its place has everything else a place further.
    """
    if not isinstance(scheduler, SolverTable):
        check_scheduler(scheduler)
    if config is not None and not isinstance(config, AdaptiveConfig):
        hint = ""
        if isinstance(config, numbers.Real) and not isinstance(config, bool):
            hint = f"; a threshold is AdaptiveConfig(threshold={config!r})"
        elif isinstance(config, str):
            hint = "; load_config reads a file or a preset, AdaptiveConfig(criterion=) names a rule"
        raise TypeError(f"config must be an AdaptiveConfig, got {type(config).__name__}{hint}")
    for name in table_arguments:
        if name in _FIELDS:
            raise TypeError(f"{name} is a setting of the config: config=AdaptiveConfig({name}=...)")


def solver_of(
    scheduler: Any,
    num_inference_steps: int | None,
    config: AdaptiveConfig,
    table_arguments: Mapping[str, Any],
) -> SolverTable:
    """The table of a scheduler, or the table that was given.

    Args:
        num_inference_steps: None with a table, or to take those that the config was chosen for.
        table_arguments: of `SolverTable.from_scheduler`.

    Raises: UnsupportedSchedulerError, ValueError, TypeError naming the argument.
    """
    chosen_for, given = config.num_inference_steps, isinstance(scheduler, SolverTable)
    if given:
        surplus = [*table_arguments]
        if num_inference_steps is not None:
            surplus = ["num_inference_steps", *surplus]
        if surplus:
            raise ValueError(f"a SolverTable already fixes the steps; drop {', '.join(surplus)}")
        table = scheduler
    else:
        if num_inference_steps is None and not {"timesteps", "sigmas"} & {*table_arguments}:
            num_inference_steps = chosen_for
        table = SolverTable.from_scheduler(scheduler, num_inference_steps, **table_arguments)
    if table.history > MAX_HISTORY:
        raise ValueError(f"scheduler must keep at most {MAX_HISTORY} outputs, got {table}")
    rows = table.num_steps + table.begin
    steps = num_inference_steps or -(-rows // table.stages)
    # A table does not say how many steps were asked for; PNDM has a row more than that.
    known = (None, steps, steps - 1) if given else (None, steps)
    if chosen_for not in known:
        warnings.warn(
            f"config was chosen for {chosen_for} steps and runs with {steps}: it makes another "
            "number of network calls than it was made for",
            RuntimeWarning,
            stacklevel=3,
        )
    if config.origin is not None and (other := config.origin.other_solver(table)):
        warnings.warn(f"config was found on {', '.join(other)}", RuntimeWarning, stacklevel=3)
    return table


def warn_of_other_network(config: AdaptiveConfig, model: Any, level: int) -> None:
    """Warns where a config was found on another network than a model is.

    level: of the caller to be shown, as `warnings.warn` counts them from here.
    """
    if config.origin is not None and (other := config.origin.other_network([model])):
        warnings.warn(
            f"config was found on {other[0]}: its calls and its quality are that one's; "
            "adaptive_kernels.calibrate finds a config of this one",
            RuntimeWarning,
            stacklevel=level + 1,
        )
