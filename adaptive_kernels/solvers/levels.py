"""How much clean image and how much noise a latent holds at each step, and what a network predicts.

    x_i = alpha_i x0 + sigma_i eps,   m_i = a_i x0 + b_i eps

with m the model output. A prediction type is a pair (a, b): epsilon (0, 1), sample (1, 0),
v (-sigma, alpha), flow (-1, 1), EDM by its preconditioning. alpha and sigma are read from the
scheduler's own add_noise(); the prediction is the one pair under which the table carries a
constant x0, and constant noise where it adds none, from level to level, whatever the scheduler's
configuration is called.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import copies

# Largest mismatch of a table with its own levels, in units of the latents: DDIM with trailing
# timesteps rounds them and steps by another distance, one training timestep off.
TOLERANCE = 0.005


@dataclass(frozen=True, eq=False, repr=False)
class NoiseLevels:
    """The levels of a table's rows and of its result, and the prediction of its network.

    alpha[T] and sigma[T] are those of the final latents.
    """

    alpha: Tensor  # [T + 1] float64
    sigma: Tensor  # [T + 1] float64
    a: Tensor  # [T] float64
    b: Tensor  # [T] float64
    prediction: str

    def __repr__(self) -> str:
        return f"NoiseLevels({self.prediction}, {self.a.shape[0]} steps)"


def read_levels(
    scheduler: Any,  # timesteps set; it stays as it is
    timesteps: Tensor,  # [T]
    begin: int,
    p: Tensor,  # [T] float64, the table's own numbers from here on
    q: Tensor,
    A: Tensor,
    S: Tensor,
    C: Tensor,  # [T, K]
) -> NoiseLevels | None:
    """Read the levels of a scheduler and find its prediction; None where they do not fit its table.

    A scheduler without add_noise() or scale_noise(), and a table of a single row, have none.
    """
    adds = hasattr(scheduler, "add_noise") or hasattr(scheduler, "scale_noise")
    if not adds or len(timesteps) < 2:
        return None
    # A fresh copy for each row: a scheduler may keep the index of its first call.
    pairs = [
        copies.start_weights(copies.begin_at(scheduler, begin + i), timesteps[i:])
        for i in range(len(timesteps))
    ]
    alpha, sigma = torch.tensor(pairs, dtype=torch.float64, device="cpu").T
    config = getattr(scheduler, "config", None) or {}
    size = (alpha[1:].square() + sigma[1:].square()).sqrt()
    candidates = []
    for name, a, b in _predictions(alpha, sigma, config):
        clean = _apply(A, C, alpha, p * alpha + q * a)
        mean = _apply(A, C, sigma, p * sigma + q * b)
        error = ((clean[:-1] - alpha[1:]).abs() / size).amax().item()
        # A step that adds no noise leaves the noise of its next level. Loosely: the second stages
        # of KDPM2, which add_noise() misplaces, are off by more.
        wrong = torch.where(S[:-1] == 0, (mean[:-1] - sigma[1:]).abs() / size, 0.0)
        if error < TOLERANCE and wrong.amax() < 2 * TOLERANCE:
            last = torch.stack((clean[-1], (mean[-1].square() + S[-1].square()).sqrt()))
            candidates.append((name != config.get("prediction_type"), error, (name, a, b, last)))
    if not candidates:
        return None
    # The configured prediction, if it is one that fits; else the one that fits best.
    _, _, (name, a, b, last) = min(candidates, key=lambda candidate: candidate[:2])
    return NoiseLevels(
        torch.cat((alpha, last[:1])), torch.cat((sigma, last[1:])), a.clone(), b.clone(), name
    )


def _apply(A: Tensor, C: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """x_{i+1} of every row from given x_i and h_i, all [T]."""
    out = A * x
    for k in range(min(C.shape[1], len(x))):
        out[k:] += C[k:, k] * h[: len(h) - k]
    return out


def _predictions(
    alpha: Tensor, sigma: Tensor, config: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    yield "epsilon", zero, one
    yield "sample", one, zero
    yield "v_prediction", -sigma, alpha
    # A scheduler in units of sigma (alpha = 1) predicts the v of the unit-variance latents.
    norm = (alpha.square() + sigma.square()).sqrt()
    yield "v_prediction", -sigma / norm, alpha / norm
    yield "flow_prediction", -one, one
    if data := config.get("sigma_data"):
        skip = data**2 / (sigma**2 + data**2)
        out = sigma * data / (sigma**2 + data**2).sqrt()
        for sign in (1, -1):
            yield "edm", sign * (1 - skip * alpha) / out, -sign * skip * sigma / out
