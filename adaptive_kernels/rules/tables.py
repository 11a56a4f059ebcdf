"""What the ops read of a solver under a config, and the layout of a row and of an entry."""

from dataclasses import dataclass, field, replace
from operator import is_

import torch
from torch import Tensor

from ..solvers.table import SolverTable
from .criteria import Rule

SCALARS = 10  # of a row: p, q, A, S, next input scale, next timestep, u, w, ps, qs; then C
OUTPUTS = 3  # outputs kept
WEIGHTS = 2 * OUTPUTS + 2  # of an entry of the weights: `pack`
# Of an entry of the rule table: what `defect` predicts per unit of its rate, a_0 .. a_2 and b of
# the noise beside it (module `defect`).
PREDICTORS = 2 + OUTPUTS


@dataclass(frozen=True, eq=False)
class FillTables:
    """What `ops.step` reads of a solver under a config, the same for every sampling."""

    rows: Tensor  # [T, 10 + K] float32
    weights: Tensor | None  # [T, G, G, 8] float32; None: outputs are reused as they are
    rule_table: Tensor | None  # [T, G, Q, 5] float32: what the criterion looks up
    rule: Rule
    input_scale: float  # c_0 of the first network input
    timestep: Tensor  # [1] float32 or int64: t_0
    threshold: float = 0.0  # that of every sample that is given none
    adds_noise: bool = True  # whether some step does; False spares the ops what makes it
    made_for: tuple | None = None  # (solver, config), the very objects
    _elsewhere: dict = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict:
        return vars(self) | {"_elsewhere": {}, "made_for": None}

    def are_for(self, table: SolverTable, config: object) -> bool:
        """Whether they were made for these very objects."""
        return self.made_for is not None and all(map(is_, self.made_for, (table, config)))

    def to(self, device: torch.device) -> "FillTables":
        """The same on a device, made once for each."""
        if self.rows.device == device:
            return self
        if device not in self._elsewhere:
            tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
            self._elsewhere.setdefault(device, replace(self, **tensors))
        return self._elsewhere[device]


def pack(
    fill: Tensor, repair: Tensor, spread: Tensor | None = None, noise: Tensor | None = None
) -> Tensor:
    """[..., 8]: an entry of the weights as csrc/core/step.h has it.

    Args:
        fill, repair: f and r, [..., 3]. spread, noise: [...]; None is zero.
    """
    zero = torch.zeros_like(fill[..., 0])
    last = torch.stack([zero if value is None else value for value in (spread, noise)], dim=-1)
    return torch.cat((fill, repair, last), dim=-1)


def rows_of(table: SolverTable, u: Tensor, w: Tensor, ps: Tensor, qs: Tensor) -> Tensor:
    """[T, 10 + K] float32, what a kernel reads at step i."""
    table_rows = table.rows()
    fill = torch.stack((u, w, ps, qs), dim=1).float()
    return torch.cat((table_rows[:, :6], fill, table_rows[:, 6:]), dim=1)
