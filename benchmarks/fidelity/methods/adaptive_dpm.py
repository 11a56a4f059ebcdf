"""Adaptive DPM-Solver: every sample chooses its own steps by an embedded pair of orders.

In lambda = ln(alpha / sigma), from lambda_s over h to lambda_t, with e_s the network at (x, s),
e_1 and e_2 the network at lambda_s + r1 h and lambda_s + r2 h, x_1 and x_2 the latents there:

    order 1      x_t = alpha_t/alpha_s x - sigma_t (e^h - 1) e_s
    order 2      order 1 - sigma_t (e^h - 1) / (2 r1) (e_1 - e_s);    x_1 by order 1 over r1 h
    order 3      order 1 - sigma_t ((e^h - 1)/h - 1) / r2 (e_2 - e_s),  r1, r2 = 1/3, 2/3, with
                 x_2 = order 1 over r2 h - sigma_2 r2/r1 ((e^{r2 h} - 1)/(r2 h) - 1) (e_1 - e_s)

    E = sqrt(mean(((high - low) / max(atol, rtol max(|low|, |low of the last accepted step|)))^2))

E <= 1 accepts the step with the higher order; then h <- min(0.9 h E^(-1/order), what is left).
Orders 1 and 2 (r1 = 1/2) call the network twice an attempt, orders 2 and 3 three times, accepted
or not.

Source: Lu et al., DPM-Solver, arXiv 2206.00927, with the constants of its released code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..method import Method, Outcome
from ..problem import Batch, Problem
from .loop import guided_network

# Theirs, for data in [-1, 1].
RTOL = 0.05
ATOL = 0.0078
FIRST_STEP = 0.05
SAFETY = 0.9
# Attempts a sample may take; the tolerance is out of float32's reach when they do not suffice.
LIMIT = 5000
# Those whose network takes eps at the levels of one variance-preserving training schedule.
SOLVERS = ("ddim", "euler", "dpm2m", "unipc")


@dataclass(frozen=True)
class Schedule:
    """A training schedule made continuous: ln alpha is linear between its timesteps."""

    log_alphas: Tensor  # [1000] float64, falling

    def log_alpha(self, timestep: Tensor) -> Tensor:
        known = torch.arange(len(self.log_alphas), dtype=torch.float64)
        return _interpolate(timestep, known, self.log_alphas)

    def lam(self, timestep: Tensor) -> Tensor:
        log_alpha = self.log_alpha(timestep)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))

    def timestep(self, lam: Tensor) -> Tensor:
        log_alpha = _log_alpha_of(lam)
        known = torch.arange(len(self.log_alphas), dtype=torch.float64)
        return _interpolate(log_alpha, self.log_alphas.flip(0), known.flip(0))


@torch.no_grad()
def run(problem: Problem, batch: Batch, rtol: float, order: int = 3, atol: float = ATOL) -> Outcome:
    """Sample from the first level of the problem's grid to its last, then take x0 there.

    The last call, at the grid's last timestep, is what every solver of the laboratory ends with.

    Args:
        rtol, atol: tolerances, relative and absolute.
        order: 2 or 3, the higher of the pair.

    Raises:
        ValueError: the problem is none of SOLVERS.
        RuntimeError: a sample needs more than LIMIT attempts.
    """
    if not _applies(problem):
        raise ValueError(f"the problem must be one of {', '.join(SOLVERS)}, got {problem.name}")
    scheduler = problem.scheduler()
    scheduler.set_timesteps(problem.steps)
    schedule = Schedule(scheduler.alphas_cumprod.double().log() / 2)
    network = guided_network(problem, batch)
    x = batch.noise.flatten(1).float().clone()
    samples = len(x)
    nfe = torch.zeros(samples, dtype=torch.float64)

    def eps(rows: Tensor, at: Tensor, latents: Tensor) -> Tensor:
        """The network at the latents [b, N] of `rows`, which stand at lambda `at` [b]."""
        everyone, times = torch.zeros_like(x), torch.zeros(samples)
        everyone[rows], times[rows] = latents, schedule.timestep(at).float()
        nfe[rows] += 1
        return network(everyone, times, rows)

    start, end = schedule.lam(scheduler.timesteps[[0, -1]].double())
    here, h = start.repeat(samples), torch.full((samples,), FIRST_STEP, dtype=torch.float64)
    low_last = x.clone()
    for _ in range(LIMIT):
        rows = (here < end).nonzero()[:, 0]
        if not len(rows):
            break
        step = torch.minimum(h[rows], end - here[rows])
        low, high = _pair(x[rows], here[rows], step, order, partial(eps, rows))
        scale = (rtol * torch.maximum(low.abs(), low_last[rows].abs())).clamp(min=atol)
        error = ((high - low) / scale).double().square().mean(1).sqrt()
        ok = error <= 1
        done = rows[ok]
        x[done], low_last[done] = high[ok], low[ok]
        # The last step ends on `end` itself, not a rounding before it.
        last = step >= end - here[rows]
        here[done] = torch.where(last, end, here[rows] + step)[ok]
        h[rows] = SAFETY * step * error ** (-1 / order)
    else:
        raise RuntimeError(f"rtol={rtol:g}, atol={atol:g} need more than {LIMIT} attempts")
    everyone = torch.arange(samples)
    clean = _shift(x, eps(everyone, here, x), here, torch.full_like(here, torch.inf))
    return Outcome(clean.view(batch.noise.shape), nfe)


def _pair(
    x: Tensor, s: Tensor, h: Tensor, order: int, eps: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The lower and the higher order of one step over h from lambda = s, both [b, N]."""
    r1, r2 = (1 / 2, None) if order == 2 else (1 / 3, 2 / 3)
    e = eps(s, x)
    first = _shift(x, e, s, s + h)
    bend = eps(s + r1 * h, _shift(x, e, s, s + r1 * h)) - e
    second = first - _column(_sigma(s + h) * torch.expm1(h) / (2 * r1)) * bend
    if order == 2:
        return first, second
    middle = _column(_sigma(s + r2 * h) * r2 / r1 * _phi2(r2 * h))
    bend = eps(s + r2 * h, _shift(x, e, s, s + r2 * h) - middle * bend) - e
    return second, first - _column(_sigma(s + h) * _phi2(h) / r2) * bend


def _shift(x: Tensor, e: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Order 1 from lambda = s to t: x0 and eps stay; t = inf gives x0."""
    ratio = torch.exp(_log_alpha_of(t) - _log_alpha_of(s))
    return _column(ratio) * x - _column(ratio * _sigma(s) - _sigma(t)) * e


def _log_alpha_of(lam: Tensor) -> Tensor:
    return -0.5 * torch.nn.functional.softplus(-2 * lam)


def _sigma(lam: Tensor) -> Tensor:
    return torch.sigmoid(-2 * lam).sqrt()


def _phi2(h: Tensor) -> Tensor:
    return torch.expm1(h) / h - 1


def _column(weight: Tensor) -> Tensor:
    return weight.float()[:, None]


def _interpolate(x: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (known, values), known rising; beyond the ends, its end pieces."""
    upper = torch.searchsorted(known, x).clamp(1, len(known) - 1)
    share = (x - known[upper - 1]) / (known[upper] - known[upper - 1])
    return torch.lerp(values[upper - 1], values[upper], share)


def _applies(problem: Problem) -> bool:
    return problem.name.split("-")[0] in SOLVERS


def _method(name: str, order: int) -> Method:
    def make(rtol: float) -> Callable[[Problem, Batch], Outcome]:
        return partial(run, rtol=rtol, order=order)

    # Beside the knob: no settings where the method does not apply.
    return Method(
        name, make, knob=(1e-3, 3.0), settings=lambda p, budget: [RTOL] if _applies(p) else []
    )


METHODS = [_method("adaptive_dpm_12", 2), _method("adaptive_dpm_23", 3)]
