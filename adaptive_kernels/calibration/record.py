"""Full runs written down step by step: what a plan is measured against.

A recording holds the latents after every step of the plain sampler and the prediction each step
used.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rules.config import AdaptiveConfig
from ..rules.fills import coordinates
from ..sampler import AdaptiveSampler
from ..sampling import inputs
from ..sampling.network import NetworkCall
from ..sampling.network.conditioning import Tree, tree_of
from ..sampling.state import State


@dataclass(frozen=True)
class Samples:
    """What is sampled: B samples, their conditioning and noise streams."""

    model: Callable
    noise: Tensor  # [B, ...]
    conditioning: dict | None
    unconditional: dict | None
    seed: Tensor  # [B] int64
    latents: Tensor | None = None  # [B, ...]: the clean ones of image-to-image

    def trees(self) -> list[Tree | None]:
        """Conditioning and unconditional, taken apart."""
        named = {"conditioning": self.conditioning, "unconditional": self.unconditional}
        where = len(self.noise), self.noise.device
        return [None if v is None else tree_of(name, v, *where) for name, v in named.items()]

    def pick(self, index: Tensor) -> "Samples":
        """The samples `index` [b] int64."""

        def take(tree: Tree | None):
            if tree is None:
                return None
            leaves = tree.leaves.values()
            return tree.rebuild(v[index] if isinstance(v, Tensor) else v for v in leaves)

        return Samples(
            self.model,
            self.noise[index],
            *map(take, self.trees()),
            self.seed[index],
            None if self.latents is None else self.latents[index],
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
    start = inputs.begin(
        *(sampler.table, config, samples.model, samples.noise),
        latents=samples.latents,
        seed=samples.seed,
        guidance_scale=sampler.guidance_scale,
        dtype=sampler.dtype,
    )
    network = NetworkCall(
        samples.model,
        samples.noise.shape,
        sampler.guidance_scale is not None,
        samples.conditioning,
        samples.unconditional if sampler.guidance_scale is not None else None,
        False,
        samples.noise.device,
        sampler.guidance_calls,
    )
    return State.of(start), network


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
    table, coords = sampler.table, coordinates(sampler.table)
    state, network = begin(sampler, AdaptiveConfig(criterion="never"), samples)
    x = recording.latents[i]
    scaled = (x * table.input_scale[i].item()).to(state.model_input.dtype)
    state.model_input.copy_(scaled.repeat(len(state.model_input) // len(x), 1))
    state.timestep.fill_(table.timesteps[i].item())
    output = network(state.model_input, state.timestep, None)
    return coords.u[i].item() * x + coords.w[i].item() * guided_output(state, output)


def guided_output(state: State, output: Tensor) -> Tensor:
    """[B, N] float32: the guided model output of what the network returned."""
    batch = state.latents.shape[1]
    output = output.float()
    if len(output) == batch:
        return output
    return output[:batch] + state.guidance_scale[:, None] * (output[batch:] - output[:batch])
