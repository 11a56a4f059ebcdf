"""Whether float32 holds a table: its run beside the scheduler's own, both against float64."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .drive import run
from .errors import Cancels, NotLinear
from .factorise import Solver
from .probe import Probe

# Below this share of the latents nobody minds; above, no more than this times the scheduler's own.
NEGLIGIBLE = 1e-4
_WORSE = 10
# Beyond rounding, whatever the solver.
_OTHERWISE = 1e-2


def check(
    scheduler: Any,
    timesteps: Tensor,
    step_kwargs: Mapping[str, Any],
    probe: Probe,
    solver: Solver,
    per_row: bool = False,
) -> None:
    """Raise where float32 does not do what float64 did.

    Cancels: the table's float32 run is far worse than the scheduler's own. NotLinear: the
    scheduler's own float32 run is not the one that the table was read from.

    scheduler: timesteps set and never stepped; it is used up. solver: made of `probe`, whose data
    both run on. per_row: a timestep for every row of the batch.
    """
    ours = _error(_follow(solver, probe), probe)
    theirs = _error(_own(scheduler, timesteps, step_kwargs, probe, per_row), probe)
    if ours > NEGLIGIBLE and not ours <= _WORSE * theirs:
        raise Cancels(
            f"its table's terms are {solver.cancellation:.0f} times the step's own and cancel, "
            f"which in float32 is {ours:.0e} off where its own steps are {theirs:.0e} off"
        )
    if theirs > _OTHERWISE and not theirs <= _WORSE * ours:
        raise NotLinear(
            f"its own steps in float32 are {theirs:.0e} off those in float64: they do something "
            "else to latents of another dtype"
        )


def _follow(solver: Solver, probe: Probe) -> Tensor:
    """[T + 1, D] float32: the closed loop as a kernel runs it."""
    p, q, A, C, z = (v.float() for v in (solver.p, solver.q, solver.A, solver.C, solver.z))
    outputs, noise = probe.data_m.float(), probe.data_z.float()
    latents, kept = [probe.data_x[0].float()], []
    for i, m in enumerate(outputs):
        kept.insert(0, p[i] * latents[-1] + q[i] * m)
        x = A[i] * latents[-1]
        for weight, h in zip(C[i], kept, strict=False):
            x = x + weight * h
        latents.append(x + (z[i, :, None] * noise[i]).sum(0))
    return torch.stack(latents)


def _own(
    scheduler: Any,
    timesteps: Tensor,
    step_kwargs: Mapping[str, Any],
    probe: Probe,
    per_row: bool,
) -> Tensor:
    """[T + 1, D] float32: the closed loop by the scheduler itself."""
    first, outputs = probe.data_x[0].float(), probe.data_m.float()
    noise = probe.data_z.float()
    seen = run(
        scheduler,
        timesteps,
        step_kwargs,
        sample_at=lambda i, last: first.reshape(2, 2, -1, 1).clone() if last is None else last,
        output_at=lambda i: outputs[i].reshape(2, 2, -1, 1).clone(),
        noise_at=lambda i, draw: noise[i, draw].reshape(2, 2, -1, 1).clone(),
        per_row=per_row,
    )
    return torch.cat((first[None], seen.outputs))


def _error(latents: Tensor, probe: Probe) -> float:
    """The largest relative distance to the float64 run, of the elements of ordinary size."""
    ordinary = slice(0, probe.data_x.shape[1] // 2)
    exact = probe.data_x[1:, ordinary]
    error = (latents[1:, ordinary].double() - exact).norm(dim=1) / exact.norm(dim=1)
    return float(error.amax())
