"""Full runs written down step by step, and plans fitted to them in a closed loop.

A recording is what a plan is measured against: the latents after every step of the plain sampler
and the prediction each step used. `fit` samples once more with the calls of a mask alone and, at
every step, finds the weights of the last three outputs that bring the latents closest to the
recorded ones:

    v_i = argmin || C_i0 qs_i (v . E - e*) ||^2,   e* = the prediction that would land on x_{i+1}

over all elements of all samples, with a small ridge towards the newest output. A solver's noise is
the same in both runs and no prediction's task.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import AdaptiveConfig
from .fills import coordinates, updates
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


@torch.no_grad()
def repeated(sampler: AdaptiveSampler, samples: Samples, recording: Recording, i: int) -> Tensor:
    """[B, N] float32: `recording.outputs[i]`, asked of the network once more."""
    table, at = sampler.table, coordinates(sampler.table)
    state, network = begin(sampler, AdaptiveConfig(criterion="never"), samples)
    x = recording.latents[i]
    scaled = (x * table.input_scale[i].item()).to(state.model_input.dtype)
    state.model_input.copy_(scaled.repeat(len(state.model_input) // len(x), 1))
    state.timestep.fill_(table.timesteps[i].item())
    output = network(state.model_input, state.timestep, None)
    return at.u[i].item() * x + at.w[i].item() * _guided(state, output)


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
            own[i] = _weights(table, at, i, state, kept, recording, own[i])
        # Rounded once and in float64 before, as a sampler that is given the plan does it.
        values = torch.tensor(own[i], dtype=torch.float64, device="cpu")
        values[0] -= float(called)
        state.weights[i, 0, 0, 3:6] = values.float().to(x.device) if called else 0.0
        state.weights[i, 0, 0, 0:3] = 0.0 if called else values.float().to(x.device)
        state.step(called)
    made_for = tuple(map(tuple, updates(table).tolist()))
    plan = Plan(table.name, timesteps, blank.refresh, tuple(own), made_for)
    return Fit(plan, state.current(), torch.stack(errors), outputs)


def _guided(state: State, output: Tensor) -> Tensor:
    batch = state.latents.shape[1]
    output = output.float()
    if len(output) == batch:
        return output
    return output[:batch] + state.guidance_scale[:, None] * (output[batch:] - output[:batch])


def _weights(
    table, at, i: int, state: State, kept: list[Tensor], recording: Recording, default: tuple
) -> tuple[float, float, float]:
    """The weights of step i; `default` where the step does not depend on its output."""
    factor = (table.C[i, 0] * at.qs[i]).item()
    if abs(factor) < 1e-12:
        return default
    # e* - e_i from the differences to the recorded run alone: what the solver's noise and rounding
    # do to both is none of the weights' business.
    ahead = (table.A[i] + table.C[i, 0] * at.ps[i]).item()
    rest = ahead * (state.current() - recording.latents[i])
    # The first step is the recorded one, so its h is too.
    for j in range(max(1, i - table.history + 1), i):
        h = at.ps[j].item() * recording.latents[j] + at.qs[j].item() * recording.outputs[j]
        rest += table.C[i, i - j].item() * (state.history[j % (table.history - 1)] - h)
    target = (recording.outputs[i] - rest / factor).flatten().double()
    basis = torch.stack([e.flatten() for e in kept]).double()
    normal, right = basis @ basis.T, basis @ target
    if not bool(normal.isfinite().all() and right.isfinite().all()):
        raise ValueError(f"model must return finite outputs, got NaN or Inf before step {i}")
    ridge = RIDGE * normal.diagonal().amax()
    # Where all outputs are zero, the newest is as good as any.
    ridge = torch.where(ridge > 0, ridge, 1.0)
    right[0] += ridge
    normal = normal + ridge * torch.eye(len(kept), dtype=normal.dtype, device=normal.device)
    found = torch.linalg.solve(normal, right).tolist()
    return tuple(found + [0.0] * (3 - len(found)))
