"""How noisy a network's outputs are along its own full runs: what half precision adds to them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..rules.config import AdaptiveConfig
from ..rules.precision import typical
from ..sampler import AdaptiveSampler
from ..solvers.keywords import known_keywords
from ..solvers.table import SolverTable
from .progress import CallBar
from .record import Recording, Samples, begin, record

# How far its input is moved at a time, relative to its size: far enough for every rounding on the
# way to fall otherwise, near enough for the network itself to be a cubic.
DISTANCE = 2.0**-6
DIFFERENCE = (1, -4, 6, -4, 1)
# Rounding is about as large from near by, where what is left of a curve is next to nothing.
NEARER, SMALLER = 8, 16
# Less is no noise: half of what float16 rounds by.
NONE = 2.0**-12
# More samples tell no more.
MOST = 4


def measure_output_noise(
    model: Callable,
    scheduler: Any,
    num_inference_steps: int | None = None,
    *,
    noise: Tensor,
    conditioning: dict | None = None,
    unconditional: dict | None = None,
    guidance_scale: float | None = None,
    latents: Tensor | None = None,
    seed: int | Sequence[int] | Tensor = 0,
    dtype: torch.dtype | None = None,
    guidance_calls: str = "batched",
    progress: bool = True,
    **table_arguments,
) -> tuple[float, ...]:
    """Measures what a network's own rounding adds to its outputs, for `output_noise` of a config.

    Along full runs the network is asked at five inputs side by side:

        size_i = rms(m(x-2d) - 4 m(x-d) + 6 m(x) - 4 m(x+d) + m(x+2d)) / sqrt(70),  x = x_i

    with rms(d) = 2^-6 rms(x_i), of which nothing is left where m is smooth; what is much less from
    near by is none. Six calls a step, eleven of a noisy network; at most four samples are used.

    Args:
        model, scheduler, num_inference_steps, guidance_scale, dtype, guidance_calls,
            **table_arguments: as `AdaptiveSampler` takes them.
        noise, conditioning, unconditional, latents, seed: as a call of `AdaptiveSampler` takes
            them; one or more samples.
        progress: whether to show a tqdm bar of network calls.

    Returns:
        One size for each row of the solver's table, rms in units of an output, of each half of a
        guided pair; all 0 where the network is as good as float32.

    Raises: ValueError, TypeError naming the argument; ValueError where outputs are not finite.
    """
    known_keywords(measure_output_noise, scheduler, table_arguments)
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be a bool, got {progress!r}")
    never = AdaptiveConfig(criterion="never")
    sampler = AdaptiveSampler(
        *(scheduler, num_inference_steps, never, guidance_scale, dtype),
        guidance_calls=guidance_calls,
        **table_arguments,
    )
    samples = Samples(model, noise, conditioning, unconditional, seed, latents)
    # Every argument is checked here, before anything is sampled.
    state, _ = begin(sampler, never, samples)
    samples = Samples(model, noise, conditioning, unconditional, state.seed, latents)
    samples = samples.pick(torch.arange(min(len(noise), MOST), device=noise.device))
    parts = {"full": sampler.table.num_steps, "noise": calls(sampler.table)}
    with tqdm(total=sum(parts.values()), unit="call", disable=not progress) as shown:
        bar = CallBar(shown, parts)
        recording = record(sampler, samples, bar.tick)
        bar.expect(full=0)
        sizes = output_noise(sampler, samples, recording, bar.tick)
        bar.expect(noise=0)
    return sizes


def calls(table: SolverTable) -> int:
    """Of the network, that `output_noise` makes at most."""
    return 2 * len(DIFFERENCE) * table.num_steps


@torch.no_grad()
def output_noise(
    sampler: AdaptiveSampler, samples: Samples, recording: Recording, tick: Callable[[], None]
) -> tuple[float, ...]:
    """The sizes of `measure_output_noise` along recorded runs; `tick` is called after each call."""
    table = sampler.table
    state, network = begin(sampler, AdaptiveConfig(criterion="never"), samples)
    halves = len(state.model_input) // len(samples.noise)
    generator = torch.Generator("cpu").manual_seed(0)
    unit = math.sqrt(sum(weight * weight for weight in DIFFERENCE))

    def size(x: Tensor, way: Tensor) -> float:
        rough: Tensor | float = 0.0
        for side, weight in enumerate(DIFFERENCE, -(len(DIFFERENCE) // 2)):
            state.model_input.copy_((x + side * way).repeat(halves, 1))
            output = network(state.model_input, state.timestep, None)
            rough = rough + weight * output.double()
            tick()
        return rough.square().mean().sqrt().item() / unit

    sizes = []
    for i, scale in enumerate(table.input_scale.tolist()):
        x = recording.latents[i] * scale
        way = torch.randn(x.shape, generator=generator, dtype=torch.float32, device="cpu")
        way = way.to(x.device)
        way *= DISTANCE * x.square().mean(1, keepdim=True).sqrt()
        state.timestep.fill_(table.timesteps[i].item())
        sizes.append(size(x, way))
        if not math.isfinite(sizes[-1]):
            raise ValueError(f"model must return finite outputs; step {i} gave NaN or Inf")
        if sizes[-1] > NONE and size(x, way / NEARER) < sizes[-1] / SMALLER:
            sizes[-1] = 0.0
    return tuple(sizes) if typical(tuple(sizes)) > NONE else (0.0,) * len(sizes)
