"""Plans fitted to recordings in a closed loop.

`fit` samples once more with the calls of a mask alone and, at every step, finds the weights of the
last three outputs that bring the latents closest to the recorded ones:

    v_i = argmin || C_i0 qs_i (v . E - e*) ||^2,   e* = the prediction that would land on x_{i+1}

over all elements of all samples, with a small ridge towards the newest output. A solver's noise is
the same in both runs and no prediction's task.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rules.config import AdaptiveConfig
from ..rules.fills import coordinates
from ..rules.plan import Plan
from ..rules.planned import planned, updates
from ..sampler import AdaptiveSampler
from ..sampling.state import State
from .record import Recording, Samples, begin, guided_output

RIDGE = 1e-6


@dataclass(frozen=True)
class Fit:
    """A plan fitted to a mask, and where its own samples landed."""

    plan: Plan
    latents: Tensor  # [B, N] float32
    error: Tensor  # [T, B, N] float32: latents before each step minus the recorded ones
    outputs: Tensor  # [T, B, N] float32: outputs at the steps of the mask, NaN elsewhere


@torch.no_grad()
def fit(
    sampler: AdaptiveSampler,
    samples: Samples,
    recording: Recording,
    mask: Tensor,  # [T] bool, whole steps alike
    tick: Callable[[], None] = lambda: None,
) -> Fit:
    """Sample with the calls of `mask`, fitting every step's weights on the way."""
    table = sampler.table
    steps, coords = table.num_steps, coordinates(table)
    weights = [(1.0, 0.0, 0.0)] * steps
    timesteps = tuple(table.timesteps.double().tolist())
    blank = Plan(table.name, timesteps, tuple(mask.tolist()), tuple(weights))
    state, network = begin(sampler, AdaptiveConfig(criterion="plan", plan=blank), samples)
    # The fit writes into them.
    state.weights = state.weights.clone()
    errors, outputs = [], torch.full_like(recording.outputs, torch.nan)
    for i in range(steps):
        x = state.current()
        errors.append(x - recording.latents[i])
        called, nfe, output = bool(mask[i]), int(mask[:i].sum()), None
        recent = [state.outputs[(nfe - 1 - k) % 3] for k in range(min(nfe, 3))]
        if called:
            output = network(state.model_input, state.timestep, None)
            recent = [
                coords.u[i].item() * x + coords.w[i].item() * guided_output(state, output),
                *recent[:2],
            ]
            outputs[i] = recent[0]
            tick()
        if i > 0:
            weights[i] = _weights(table, coords, i, state, recent, recording, weights[i])
        # Rounded once and in float64 before, as a sampler that is given the plan does it.
        values = torch.tensor(weights[i], dtype=torch.float64, device="cpu")
        state.weights[i] = planned(values, torch.tensor(called, device="cpu")).float()
        state.step(called, output)
    made_for = tuple(map(tuple, updates(table).tolist()))
    plan = Plan(table.name, timesteps, blank.refresh, tuple(weights), made_for)
    return Fit(plan, state.current(), torch.stack(errors), outputs)


def _weights(
    table, coords, i: int, state: State, recent: list[Tensor], recording: Recording, default: tuple
) -> tuple[float, float, float]:
    """The weights of step i; `default` where the step does not depend on its output."""
    factor = (table.C[i, 0] * coords.qs[i]).item()
    if abs(factor) < 1e-12:
        return default
    # e* - e_i from the differences to the recorded run alone: what the solver's noise and rounding
    # do to both is none of the weights' business.
    ahead = (table.A[i] + table.C[i, 0] * coords.ps[i]).item()
    remainder = ahead * (state.current() - recording.latents[i])
    # The first step is the recorded one, so its h is too.
    for j in range(max(1, i - table.history + 1), i):
        h = coords.ps[j].item() * recording.latents[j] + coords.qs[j].item() * recording.outputs[j]
        remainder += table.C[i, i - j].item() * (state.history[j % (table.history - 1)] - h)
    target = (recording.outputs[i] - remainder / factor).flatten().double()
    basis = torch.stack([e.flatten() for e in recent]).double()
    normal, right = basis @ basis.T, basis @ target
    if not bool(normal.isfinite().all() and right.isfinite().all()):
        raise ValueError(f"model must return finite outputs, got NaN or Inf before step {i}")
    ridge = RIDGE * normal.diagonal().amax()
    # Where all outputs are zero, the newest is as good as any.
    ridge = torch.where(ridge > 0, ridge, 1.0)
    right[0] += ridge
    normal = normal + ridge * torch.eye(len(recent), dtype=normal.dtype, device=normal.device)
    weights = torch.linalg.solve(normal, right).tolist()
    return tuple(weights + [0.0] * (3 - len(weights)))
