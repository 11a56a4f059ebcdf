"""The solver tables that requests of one run take, by where in the schedule they begin."""

from collections.abc import Mapping
from typing import Any

from ...rules.config import AdaptiveConfig
from ...rules.fills import fill_tables
from ...rules.tables import FillTables
from ...solvers.start import check_strength
from ...solvers.table import SolverTable

# Tables kept: a service may be asked for any strength.
_MOST = 64


class Solvers:
    """A scheduler's table, and those of its later rows.

    Args:
        scheduler: a diffusers scheduler, or a `SolverTable`, which has no later rows.
        table: from the row on that a request without a strength begins at.
        arguments: of `SolverTable.from_scheduler`.
    """

    def __init__(
        self,
        scheduler: Any,
        table: SolverTable,
        config: AdaptiveConfig,
        num_inference_steps: int | None,
        strength_rounding: str | None,
        arguments: Mapping[str, Any],
    ):
        self.scheduler, self.table, self._config = scheduler, table, config
        self._own = table, fill_tables(table, config)
        self._steps, self._rounding = num_inference_steps, strength_rounding
        self._arguments = dict(arguments)
        self._later: dict[float, tuple[SolverTable, FillTables]] = {}

    def of(self, strength: float | None) -> tuple[SolverTable, FillTables]:
        """The tables of a request's strength; None: the scheduler's own.

        Raises: ValueError naming the argument.
        """
        if strength is None:
            return self._own
        check_strength(strength, None, 0)
        if isinstance(self.scheduler, SolverTable):
            raise ValueError(
                f"strength must be None for an engine with a SolverTable, got {strength}: its "
                "scheduler, of which later rows are read, is not known"
            )
        if fixed := [name for name in ("strength", "begin_index") if name in self._arguments]:
            raise ValueError(
                f"strength must be None for an engine that was made with {fixed[0]}, got {strength}"
            )
        strength = float(strength)
        if strength not in self._later:
            table = SolverTable.from_scheduler(
                self.scheduler,
                self._steps,
                strength=strength,
                strength_rounding=self._rounding,
                **self._arguments,
            )
            if len(self._later) >= _MOST:
                del self._later[next(iter(self._later))]
            self._later[strength] = table, fill_tables(table, self._config)
        return self._later[strength]
