"""How much clean image and how much noise a latent holds at each step, and what a network predicts.

    x_i = alpha_i x0 + sigma_i eps,   m_i = a_i x0 + b_i eps

with m the model output. A prediction type is a pair (a, b): epsilon (0, 1), sample (1, 0),
v (-sigma, alpha), flow (-1, 1), EDM by its preconditioning. alpha and sigma are read from the
scheduler's own add_noise(), or from the schedule it keeps; the prediction is the one pair under
which the table carries a constant x0, and constant noise where it adds none, from level to level,
whatever the scheduler's configuration is called.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reading import copies
from .reading.config import config_of, number_of
from .start import added_noise

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

    @property
    def rising(self) -> bool:
        """Whether the rows lead from an image to noise: inversion."""
        first, last = torch.atan2(self.sigma, self.alpha)[[0, -1]].tolist()
        return first < last

    def __repr__(self) -> str:
        return f"NoiseLevels({self.prediction}, {self.a.shape[0]} steps)"


@dataclass(frozen=True, eq=False)
class Rows:
    """A table's own numbers."""

    p: Tensor  # [T] float64
    q: Tensor
    A: Tensor
    S: Tensor
    C: Tensor  # [T, K]

    def follow(self, x: Tensor, m: Tensor) -> Tensor:
        """x_{i+1} of every row without its noise, from given x_i and m_i, all [T]."""
        h = self.p * x + self.q * m
        out = self.A * x
        for k in range(min(self.C.shape[1], len(x))):
            out[k:] += self.C[k:, k] * h[: len(h) - k]
        return out


def read_levels(
    scheduler: Any,  # timesteps set; it stays as it is
    timesteps: Tensor,  # [T]
    begin: int,
    stages: int,  # rows per solver step
    rows: Rows,
) -> NoiseLevels | None:
    """Read the levels of a scheduler and find its prediction; None where they do not fit its table.

    They are those of add_noise() or scale_noise(), or of the schedule it keeps if it has neither.
    A table of a single row has none, as nothing tells whether they fit.
    """
    if len(timesteps) < 2:
        return None
    config = config_of(scheduler)
    for alpha, sigma in _levels(scheduler, timesteps, begin):
        found = _fit(alpha, sigma, config, rows)
        if found is None and stages == 2:
            found = _fit(alpha, sigma, config, rows, between=True)
        if found is not None:
            return found
    return None


def _fit(
    alpha: Tensor,  # [T] float64
    sigma: Tensor,
    config: Mapping[str, Any],
    rows: Rows,
    between: bool = False,
) -> NoiseLevels | None:
    """The levels with the prediction under which the table carries them; None: under none.

    between: the second stages of steps stand where the table brings them, whatever was given.
    """
    candidates, configured = [], config.get("prediction_type")
    if configured is None and bool(((alpha + sigma - 1).abs() < 1e-6).all()):
        # Of two rows, v would do as well.
        configured = "flow_prediction"
    for number, (name, a, b) in enumerate(_predictions(alpha, sigma, config)):
        if between:
            alpha, sigma = (v.clone() for v in (alpha, sigma))
            for x, m in ((alpha, a), (sigma, b)):
                x[1::2] = rows.follow(x, m)[: len(x) - 1 : 2]
            name, a, b = [*_predictions(alpha, sigma, config)][number]
        clean, mean = rows.follow(alpha, a), rows.follow(sigma, b)
        size = (alpha[1:].square() + sigma[1:].square()).sqrt()
        error = ((clean[:-1] - alpha[1:]).abs() / size).amax().item()
        # A step that adds no noise leaves the noise of its next level. Loosely: the second stages
        # of KDPM2's ancestral kind, which add_noise() misplaces, are off by more.
        wrong = torch.where(rows.S[:-1] == 0, (mean[:-1] - sigma[1:]).abs() / size, 0.0)
        if error < TOLERANCE and wrong.amax() < 2 * TOLERANCE:
            last = torch.stack((clean[-1], (mean[-1].square() + rows.S[-1].square()).sqrt()))
            whole = torch.cat((torch.stack((alpha, sigma), 1), last[None])).T
            levels = NoiseLevels(*whole, a.clone(), b.clone(), name)
            candidates.append((name != configured, error, levels))
    # The configured prediction, if it is one that fits; else the one that fits best.
    return min(candidates, key=lambda candidate: candidate[:2])[2] if candidates else None


def _levels(scheduler: Any, timesteps: Tensor, begin: int) -> Iterator[tuple[Tensor, Tensor]]:
    """alpha and sigma of every row, [T] float64 each, as a scheduler may mean them."""
    rows = len(timesteps)
    if hasattr(scheduler, "add_noise") or hasattr(scheduler, "scale_noise"):
        # A fresh copy for each row: a scheduler may keep the index of its first call.
        pairs = [
            added_noise(copies.begin_at(scheduler, begin + i), timesteps[i:]) for i in range(rows)
        ]
        if None not in pairs:
            alpha, sigma = torch.tensor(pairs, dtype=torch.float64, device="cpu").T
            yield alpha, sigma
        return

    def kept(name: str, count: int) -> Tensor | None:
        value = getattr(scheduler, name, None)
        whole = isinstance(value, Tensor) and value.ndim == 1 and count <= len(value) <= count + 1
        return value[begin : begin + rows].double() if whole else None

    sigma = kept("sigmas", begin + rows)
    if sigma is not None:
        # x_0 is init_noise_sigma * noise, which tells the units: flow matching ends at 1.
        if scheduler.sigmas.amax() <= 1:
            yield 1 - sigma, sigma
        elif number_of(scheduler, "init_noise_sigma") <= 1:
            norm = (1 + sigma.square()).rsqrt()
            yield norm, sigma * norm
        else:
            yield torch.ones_like(sigma), sigma
    alpha, sigma = kept("alphas", begin + rows), kept("betas", begin + rows)
    if alpha is not None and sigma is not None:
        yield alpha, sigma
    products = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(products, Tensor) and not timesteps.is_floating_point():
        # On the way up latents stand at the timestep before, the first at none.
        first = getattr(scheduler, "initial_alpha_cumprod", products[0])
        whole = copies.timesteps_of(scheduler)
        before = whole[begin - 1 : begin + rows - 1] if begin else timesteps[:-1]
        if before.amax() < len(products) and before.amin() >= 0:
            product = products[before].double()
            if not begin:
                product = torch.cat((torch.as_tensor(first).reshape(1).double(), product))
            yield product.sqrt(), (1 - product).sqrt()


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
    # MiniMax's velocity points to the data.
    for sign in (1, -1):
        yield "flow_prediction", -sign * one, sign * one
    if data := config.get("sigma_data"):
        skip = data**2 / (sigma**2 + data**2)
        out = sigma * data / (sigma**2 + data**2).sqrt()
        for sign in (1, -1):
            yield "edm", sign * (1 - skip * alpha) / out, -sign * skip * sigma / out
