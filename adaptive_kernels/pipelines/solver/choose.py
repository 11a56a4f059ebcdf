"""Which solver steps a sampling, and by which rule: what was asked for, or what works and why."""

import inspect
import weakref
from dataclasses import replace
from typing import Any

import torch

from ...rules.config import AdaptiveConfig
from ...rules.criteria import CRITERIA
from ...rules.fills import fill_tables
from ...rules.tables import FillTables
from ...solvers.scheduler import UnsupportedSchedulerError
from ...solvers.table import SolverTable
from .arguments import extra_of
from .buffers import Buffers
from .fused import Fused
from .own import Own, passing
from .returns import Disagreement, Returns, check, own_scales, own_step
from .table import first_rows, table_of

# The solver's own numbers, which stay what they are from step to step.
_CONSTANT = frozenset(("eta", "use_clipped_model_output", "s_churn", "s_tmin", "s_tmax", "s_noise"))
# What a scheduler without a memory is handed back by its pipeline.
_BACK = frozenset(("old_pred_original_sample", "timestep_back"))
# By table: what was found out once, per dtypes and per config.
_RETURNS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_FILLS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Choice:
    """A solver for one sampling, the rule it follows, and what there is to tell about both."""

    def __init__(
        self,
        scheduler: Any,
        config: AdaptiveConfig,
        given: dict,
        samples: int,
        output_noise: float,  # the most that counts as noise of the networks, `largest_noise`
    ):
        self.scheduler, self.config = scheduler, config
        self.notes: list[str] = []
        self.hints: list[str] = []
        self.table: SolverTable | None = None
        self.scales: list[float] | None = None  # c_i, where scale_model_input() needs them
        self.extra = extra_of(given)
        if given["sample"].device.type == "mps":
            raise RuntimeError("latents are on mps, which has no float64: decisions need it")
        rows = first_rows(scheduler, given["timestep"])
        self.begin = rows[0] if rows else None
        returns = None
        try:
            self._check_step(given, len(rows))
            self.table, returns = self._table(given)
        except (UnsupportedSchedulerError, Disagreement) as error:
            self._no_table(str(error))
        if torch.is_grad_enabled() and (
            given["sample"].requires_grad or given["model_output"].requires_grad
        ):
            # Through a skipped call there is no way back.
            self.table, self.config = None, AdaptiveConfig(criterion="never")
            self.notes.append("gradients are asked for: every step calls the network")
        if self.table is not None:
            tables = self._fills(self.table)
            self.config = self.config.resolved(self.table)
            buffers = Buffers(
                self.table, self.config, tables, given["sample"], samples, output_noise
            )
            self.solver = Fused(self.table, returns, buffers)
            if not returns.scales:
                self.scales = self.table.input_scale.tolist()
            self._other_steps()
            return
        begin, stages = self.begin or 0, int(getattr(scheduler, "order", 1))
        rows = max(1, len(scheduler.timesteps) - begin)
        if begin % stages:
            # Nobody knows then which calls belong to one step.
            stages = 1
        table = passing(rows, stages)
        tables = fill_tables(table, self.config)
        self.solver = Own(Buffers(table, self.config, tables, given["sample"], samples, 0.0))

    def _check_step(self, given: dict[str, Any], rows: int) -> None:
        """Raise for calls of step() that no table stands for.

        rows: how many rows of the schedule the first step may be.
        """
        name, step = type(self.scheduler).__name__, type(self.scheduler).step
        if getattr(self.scheduler.step, "covers", False):
            raise UnsupportedSchedulerError(f"{name}: its step() is another one than its class's")
        parameters = inspect.signature(step).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty and p.name in _BACK]
        for key in [*needed, *(key for key in self.extra if key not in _CONSTANT)]:
            raise UnsupportedSchedulerError(
                f"{name}: its step() is given {key}, which a table cannot take"
            )
        if rows != 1:
            where = "twice in" if rows else "not in"
            raise UnsupportedSchedulerError(
                f"{name}: the timestep that the pipeline begins with stands {where} its schedule"
            )
        if self.begin % int(getattr(self.scheduler, "order", 1)):
            raise UnsupportedSchedulerError(
                f"{name}: row {self.begin} of its schedule is not the first call of a whole step"
            )
        if given["model_output"].shape != given["sample"].shape:
            raise UnsupportedSchedulerError(
                f"{name}: its step() is given an output of shape "
                f"{tuple(given['model_output'].shape)} for latents {tuple(given['sample'].shape)}"
            )

    def _table(self, given: dict[str, Any]) -> tuple[SolverTable, Returns]:
        name = type(self.scheduler).__name__
        table = table_of(self.scheduler, self.begin, self.extra)
        if any(draw.path for row in table.draws for _, draw in row):
            raise UnsupportedSchedulerError(
                f"{name}: its noise comes from a path of its own, which a table cannot draw"
            )
        model_output, sample = given["model_output"], given["sample"]
        known = _RETURNS.setdefault(table, {})
        key = (model_output.dtype, sample.dtype)
        if key not in known:
            returns, own = own_step(
                self.scheduler, model_output, given["timestep"], sample, self.extra
            )
            check(table, model_output, sample, own)
            known[key] = replace(returns, scales=own_scales(self.scheduler, table))
        return table, known[key]

    def _no_table(self, why: str) -> None:
        criterion = self.config.criterion
        if criterion == "plan":
            raise UnsupportedSchedulerError(
                f"criterion 'plan' needs a scheduler that is a table, and this one is none: {why}"
            )
        if criterion == "defect":
            self._third_order(f"the scheduler is no table ({why})")
        elif (self.config.fill or "reuse") != "reuse":
            raise UnsupportedSchedulerError(
                f"fill {self.config.fill!r} needs a scheduler that is a table, and this one is "
                f"none: {why}"
            )
        else:
            # Under never that is nobody's loss.
            told = self.hints if criterion == "never" else self.notes
            told.append(f"the scheduler steps itself, as it is no table ({why})")

    def _third_order(self, why: str) -> None:
        warmup, least = self.config.warmup, CRITERIA["third_order"].warmup
        self.config = AdaptiveConfig.paper(
            max_skip=self.config.max_skip,
            warmup=None if warmup is None else max(warmup, least),
            granularity=self.config.granularity,
        )
        self.notes.append(f"third_order with reuse in place of defect: {why}")

    def _fills(self, table: SolverTable) -> FillTables:
        if self.config.criterion == "defect" and table.levels is None and table.num_steps > 1:
            self._third_order(f"the noise levels of {table.name} are not known")
        known = _FILLS.setdefault(table, {})
        if self.config not in known:
            if len(known) > 16:
                known.clear()
            known[self.config] = fill_tables(table, self.config)
        return known[self.config]

    def _other_steps(self) -> None:
        asked = getattr(self.scheduler, "num_inference_steps", None)
        chosen_for = self.config.num_inference_steps
        if None not in (asked, chosen_for) and asked != chosen_for:
            self.notes.append(
                f"the config was chosen for num_inference_steps={chosen_for} and runs with {asked}"
            )
