"""Full runs written down step by step, and plans fitted to them in a closed loop.

A recording is what a plan is measured against: the latents after every step of the plain sampler
and the prediction each step used. `fit` samples once more with the calls of a mask alone and, at
every step, finds the weights of the last three outputs that bring the latents closest to the
recorded ones:

    v_i = argmin || C_i0 qs_i (v . E - e*) ||^2,   e* = the prediction that would land on x_{i+1}

over all elements of all samples, with a small ridge towards the newest output.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import AdaptiveConfig
from .fills import coordinates
from .network import NetworkCall
from .plan import Plan
from .sampler import AdaptiveSampler
from .state import State

RIDGE = 1e-6


@dataclass(frozen=True)
class Samples:
    """What is sampled: B samples, their conditioning and noise streams."""

    model: Callable
    noise: Tensor  # [B, ...]
    conditioning: dict | None
    unconditional: dict | None
    seed: Tensor  # [B] int64
    latents: Tensor | None = None  # [B, ...]: the clean ones of image-to-image

    def pick(self, rows: Tensor) -> "Samples":
        """The samples `rows` [b] int64."""

        def take(tree):
            if tree is None:
                return None
            return torch.utils._pytree.tree_map(
                lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, dict(tree)
            )

        return Samples(
            self.model,
            self.noise[rows],
            take(self.conditioning),
            take(self.unconditional),
            self.seed[rows],
            None if self.latents is None else self.latents[rows],
        )


@dataclass(frozen=True)
class Recording:
    """Full runs of B samples of N elements."""

    latents: Tensor  # [T + 1, B, N] float32
    outputs: Tensor  # [T, B, N] float32, in the coordinates of `fills.coordinates`


def begin(
    sampler: AdaptiveSampler, config: AdaptiveConfig, samples: Samples
) -> tuple[State, NetworkCall]:
    """Buffers of `config` before the first step, and the network over all rows."""
    own = AdaptiveSampler(
        sampler.table, config=config, guidance_scale=sampler.guidance_scale, dtype=sampler.dtype
    )
    state = own.begin(samples.model, samples.noise, samples.latents, samples.seed)
    network = NetworkCall(
        samples.model,
        samples.noise.shape,
        sampler.guidance_scale is not None,
        samples.conditioning,
        samples.unconditional if sampler.guidance_scale is not None else None,
        False,
        samples.noise.device,
    )
    return state, network


@torch.no_grad()
def record(
    sampler: AdaptiveSampler, samples: Samples, tick: Callable[[], None] = lambda: None
) -> Recording:
    """Run the plain sampler and write every step down; `tick` is called after each."""
    plain = AdaptiveConfig(criterion="never", fill="linear")
    state, network = begin(sampler, plain, samples)
    latents, outputs = [state.current()], []
    for i in range(sampler.table.num_steps):
        state.advance(network(state.model_input, state.timestep, None))
        latents.append(state.current())
        outputs.append(state.outputs[i % len(state.outputs)].clone())
        tick()
    return Recording(torch.stack(latents), torch.stack(outputs))


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
    steps, at = table.num_steps, coordinates(table)
    own = [(1.0, 0.0, 0.0)] * steps
    timesteps = tuple(table.timesteps.double().tolist())
    blank = Plan(table.name, timesteps, tuple(mask.tolist()), tuple(own))
    state, network = begin(sampler, AdaptiveConfig(criterion="plan", plan=blank), samples)
    state.weights = state.weights.clone()
    errors, outputs = [], torch.full_like(recording.outputs, torch.nan)
    for i in range(steps):
        x = state.current()
        errors.append(x - recording.latents[i])
        called, nfe = bool(mask[i]), int(mask[:i].sum())
        kept = [state.outputs[(nfe - 1 - k) % 3] for k in range(min(nfe, 3))]
        if called:
            output = network(state.model_input, state.timestep, None)
            state.model_output = output
            kept = [at.u[i].item() * x + at.w[i].item() * _guided(state, output), *kept[:2]]
            outputs[i] = kept[0]
            tick()
        if i > 0:
            own[i] = _weights(table, at, i, state, kept, recording.latents[i + 1], own[i])
        values = torch.tensor(own[i]) - torch.tensor([1.0, 0.0, 0.0]) * called
        state.weights[i, 0, 0, 3:6] = values.to(state.weights) if called else 0.0
        state.weights[i, 0, 0, 0:3] = 0.0 if called else values.to(state.weights)
        state.step(called)
    plan = Plan(table.name, timesteps, blank.refresh, tuple(own))
    return Fit(plan, state.current(), torch.stack(errors), outputs)


def _guided(state: State, output: Tensor) -> Tensor:
    batch = state.latents.shape[1]
    output = output.float()
    if len(output) == batch:
        return output
    return output[:batch] + state.guidance_scale[:, None] * (output[batch:] - output[:batch])


def _weights(
    table, at, i: int, state: State, kept: list[Tensor], goal: Tensor, default: tuple
) -> tuple[float, float, float]:
    """The weights of step i; `default` where the step does not depend on its output."""
    factor = (table.C[i, 0] * at.qs[i]).item()
    if abs(factor) < 1e-12:
        return default
    x = state.current()
    rest = (table.A[i] + table.C[i, 0] * at.ps[i]).item() * x
    depth = table.history - 1
    for k in range(1, min(table.history, i + 1)):
        rest = rest + table.C[i, k].item() * state.history[(i - k) % depth]
    target = ((goal - rest) / factor).flatten().double()
    basis = torch.stack([e.flatten() for e in kept]).double()
    normal, right = basis @ basis.T, basis @ target
    if not bool(normal.isfinite().all() and right.isfinite().all()) or not normal[0, 0] > 0:
        raise ValueError(f"model must return finite outputs, got NaN or Inf before step {i}")
    ridge = RIDGE * normal[0, 0]
    right[0] += ridge
    normal = normal + ridge * torch.eye(len(kept), dtype=normal.dtype, device=normal.device)
    found = torch.linalg.solve(normal, right).tolist()
    return tuple(found + [0.0] * (3 - len(found)))
