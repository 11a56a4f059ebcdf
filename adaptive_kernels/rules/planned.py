"""The tables of a plan, and whether it was made for a solver."""

import torch
from torch import Tensor

from ..solvers.table import SolverTable
from .config import AdaptiveConfig
from .tables import PREDICTORS, pack


def updates(table: SolverTable) -> Tensor:
    """[T, 3] float64: A, C_0 q and S of each step, by which a plan knows its solver."""
    return torch.stack((table.A, table.C[:, 0] * table.q, table.S), dim=1)


def planned_tables(table: SolverTable, config: AdaptiveConfig) -> tuple[Tensor, Tensor]:
    plan = config.plan
    timesteps = tuple(table.timesteps.double().tolist())
    if (
        len(timesteps) != len(plan.timesteps)
        or any(
            abs(a - b) > 1e-3 * max(1.0, abs(b))
            for a, b in zip(timesteps, plan.timesteps, strict=True)
        )
        or plan.solver != table.name
    ):
        raise ValueError(
            f"plan must be one for {table}, got one for {plan.solver} with "
            f"{len(plan.timesteps)} steps from timestep {plan.timesteps[0]:g}"
        )
    if plan.updates:
        plan_updates, table_updates = (
            torch.tensor(plan.updates, dtype=torch.float64),
            updates(table),
        )
        if ((plan_updates - table_updates).abs() > 1e-3 * table_updates.abs().clamp(min=1.0)).any():
            raise ValueError(
                f"plan must be one for {table}, got one for other coefficients of the same name "
                "and timesteps (another prediction, order, schedule or noise)"
            )
    refresh = torch.tensor(plan.refresh)
    whole = torch.arange(len(refresh)) // table.stages * table.stages
    if not torch.equal(refresh, refresh[whole]):
        raise ValueError("plan.refresh must call the network at both stages of a step or at none")
    values = torch.tensor(plan.weights, dtype=torch.float64)
    asked = torch.zeros(len(refresh), 1, 1, PREDICTORS, dtype=torch.float32)
    asked[:, 0, 0, 0] = refresh.float()
    return planned(values, refresh)[:, None, None].float(), asked


def planned(values: Tensor, called: Tensor) -> Tensor:
    """[..., 8] float64: the weights of steps whose output is a weighted sum of the last three.

    Args:
        values: [..., 3] float64, newest first; of a step that calls, its own output is the newest.
        called: [...] bool.
    """
    called = called[..., None]
    newest = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device=values.device)
    return pack(torch.where(called, 0.0, values), torch.where(called, values - newest, 0.0))
