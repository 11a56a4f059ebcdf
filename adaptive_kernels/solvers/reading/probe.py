"""Read the coefficients of a linear step() off what it does to basis vectors.

Fed basis vectors, it writes its own coefficients into the coordinates of what it returns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .config import config_of, number_of
from .drive import run
from .errors import ProbeError
from .noise import DRAWS, Draw
from .quick import Vector

# Another shape for latents than the probe's, with as many channels and columns as some have.
_ELSEWHERE = (4, 17, 3, 18)


@dataclass(frozen=True)
class Probe:
    """What a scheduler did to basis vectors, and to random data in a closed loop beside them.

    The closed loop needs no model: a scheduler never sees it, so independent random outputs stand
    for any. Half of its elements are large enough to meet every clamp of the configuration.
    """

    x: Tensor  # [T, T] float64, weight of x_j in x_{i+1}; zero for j > i
    m: Tensor  # [T, T] float64, weight of m_j
    z: Tensor  # [T, T, DRAWS] float64, weight of the draws of step j
    input_scale: Tensor  # [T] float64
    data_x: Tensor  # [T + 1, D] float64, x_0 .. x_T of the closed loop
    data_m: Tensor  # [T, D] float64
    data_z: Tensor  # [T, DRAWS, D] float64
    # [T, 2 + DRAWS] float64, weights of x_i, m_i and the step's draws in its second value.
    estimate: Tensor | None
    draws: list[list[Draw]]


def probe(
    scheduler: Any,
    timesteps: Tensor,
    step_kwargs: Mapping[str, Any],
    quick: bool = False,
    per_row: bool = False,
) -> Probe:
    """Feed every step fresh basis vectors for latents, output and noise, and read them back.

    scheduler: timesteps set and never stepped; it is used up. timesteps: [T], the ones to run.
    quick: with `Vector`; fails where a step draws. per_row: a timestep for every row of the batch.
    Raises ProbeError where step() cannot be run so or gives values that are not finite.
    """
    steps = len(timesteps)
    columns = (2 + DRAWS) * steps
    data = _random_data(scheduler, columns, 32 + -columns % 8)

    def vector(column: int, tail: Tensor) -> Tensor:
        basis = torch.zeros(columns, dtype=torch.float64)
        basis[column] = 1
        # More than one element along every axis: who mixes along any of them is seen.
        fed = torch.cat((basis, tail)).reshape(2, 2, -1, 2)
        return fed.as_subclass(Vector) if quick else fed

    def sample_at(i: int, previous: Tensor | None) -> Tensor:
        return vector(i, data[0] if previous is None else previous.flatten()[columns:])

    seen = run(
        scheduler,
        timesteps,
        step_kwargs,
        sample_at=sample_at,
        output_at=lambda i: vector(steps + i, data[steps + i]),
        noise_at=lambda i, draw: vector(
            2 * steps + i * DRAWS + draw, data[2 * steps + i * DRAWS + draw]
        ),
        quick=quick,
        per_row=per_row,
    )
    inputs, outputs = seen.inputs, seen.outputs
    data_x = torch.cat((data[:1], outputs[:, columns:]))
    input_scale = inputs[:, :steps].diagonal().clone()
    error = (inputs[:, columns:] - input_scale[:, None] * data_x[:-1]).abs()
    alone = inputs[:, :columns].count_nonzero() == input_scale.count_nonzero()
    if not alone or (error > 1e-9 * inputs[:, columns:].abs()).any():
        raise ProbeError("scale_model_input() is not a multiple of the latents")
    x, m, z = outputs[:, :columns].split((steps, steps, DRAWS * steps), dim=1)
    return Probe(
        *(x, m, z.unflatten(1, (steps, DRAWS)), input_scale, data_x),
        data_m=data[steps : 2 * steps],
        data_z=data[2 * steps :].unflatten(0, (steps, DRAWS)),
        estimate=_estimate(seen.estimates, data_x[:-1], data[steps:]),
        draws=seen.draws,
    )


def elsewhere(
    scheduler: Any,
    timesteps: Tensor,
    step_kwargs: Mapping[str, Any],
    known: Probe,
    per_row: bool = False,
) -> Probe:
    """Run the closed loop on data of another shape: the same probe, with that data in its place.

    scheduler: timesteps set and never stepped; it is used up. per_row: a timestep for every row of
    the batch.
    """
    shape, steps = _ELSEWHERE, len(timesteps)
    data = _random_data(scheduler, (2 + DRAWS) * steps, math.prod(shape))
    first, outputs, noise = data[0], data[steps : 2 * steps], data[2 * steps :]
    noise = noise.unflatten(0, (steps, DRAWS))
    seen = run(
        scheduler,
        timesteps,
        step_kwargs,
        # Copies, as a scheduler may write into its arguments.
        sample_at=lambda i, last: (first if last is None else last).reshape(shape).clone(),
        output_at=lambda i: outputs[i].reshape(shape).clone(),
        noise_at=lambda i, draw: noise[i, draw].reshape(shape).clone(),
        per_row=per_row,
    )
    data_x = torch.cat((first[None], seen.outputs))
    return replace(known, data_x=data_x, data_m=outputs, data_z=noise)


def _estimate(seen: Tensor | None, data_x: Tensor, data: Tensor) -> Tensor | None:
    """[T, 2 + DRAWS]: weights of x_i, m_i and the draws of step i in the second value of step i.

    None where there is none, or more goes into it.

    seen: [T, columns + width] float64. data_x: [T, width]. data: [(1 + DRAWS) T, width], what stood
    for the outputs and for the draws.
    """
    if seen is None:
        return None
    steps, width = data_x.shape
    basis = seen[:, :-width]
    row = torch.arange(steps)
    columns = [row, steps + row, *(2 * steps + row * DRAWS + k for k in range(DRAWS))]
    weights = torch.stack([basis[row, column] for column in columns], dim=1)
    if basis.count_nonzero() != weights.count_nonzero():
        return None
    fed = torch.stack([data_x, *(data[column - steps] for column in columns[1:])], dim=1)
    terms = weights[:, :, None] * fed
    error = (terms.sum(1) - seen[:, -width:]).abs()
    return None if (error > 1e-9 * terms.abs().sum(1)).any() else weights


def _random_data(scheduler: Any, count: int, width: int) -> Tensor:
    config = config_of(scheduler)
    limits = [float(config.get(key) or 1) for key in ("clip_sample_range", "sample_max_value")]
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(count, width, generator=generator, dtype=torch.float64)
    data[0] *= number_of(scheduler, "init_noise_sigma")
    data[:, width // 2 :] *= 1e3 * max(limits)
    return data
