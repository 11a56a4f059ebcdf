"""What a scheduler did to basis vectors, written as the rows of a table.

The rows of an open loop name latents and model outputs of any age; here they become a short
history of h = p x + q m and, where an anchor is involved, a multiple of the previous row.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .errors import NotLinear, TooOld
from .probe import Probe

# Coefficients are exact to a few float64 roundings; anything beyond this share of its row is real.
_TOLERANCE = 1e-11
# What rounding makes of a step's terms in float64, at most; anything beyond is another function.
_MISMATCH = 1e-9
_NO_FUNCTION = "is not a linear function of latents and model output, the same for every element"


@dataclass(frozen=True)
class Solver:
    """The rows of a table, with the weight of every draw of a step instead of their norm."""

    p: Tensor  # [T]
    q: Tensor  # [T]
    A: Tensor  # [T]
    C: Tensor  # [T, K]
    z: Tensor  # [T, draws]
    cancellation: float = 1.0  # how much larger its terms are than the step's own, at most

    def terms(self, probe: Probe) -> Tensor:
        """Return what every step of the closed loop adds up, [terms, T, D]."""
        x, m = probe.data_x[:-1], probe.data_m
        terms = [self.A[:, None] * x, *(self.z[:, :, None] * probe.data_z).unbind(1)]
        for lag, weight in enumerate(self.C.unbind(1)):
            for kept in (self.p[:, None] * x, self.q[:, None] * m):
                shifted = torch.zeros_like(kept)
                shifted[lag:] = kept[: len(x) - lag]
                terms.append(weight[:, None] * shifted)
        return torch.stack(terms)


def solve(probe: Probe) -> Solver:
    """Factorise what was seen; raise NotLinear unless the closed loop on random data agrees."""
    size = torch.maximum(probe.x.abs(), probe.m.abs())
    keep = size > 1e-13 * size.amax(dim=1, keepdim=True)
    x, m = probe.x * keep, probe.m * keep
    own = _own_terms(probe, x, m)

    ahead = size.triu(1) + probe.z.abs().amax(2).triu(1)
    if ahead.any():
        i = int(ahead.amax(1).argmax())
        raise NotLinear(f"step {i} {_NO_FUNCTION}")
    # Many small steps with few numbers each: NumPy takes a fifth of the time.
    x, m, z = x.numpy(), m.numpy(), probe.z.numpy()
    output = np.tile([0.0, 1.0], (len(x), 1))
    gauges = [_read_later(x, m, False), output, _read_later(x, m, True)]
    best, best_cost = None, (0, 0.0)
    worst: NotLinear = TooOld("it needs noise or latents older than a row keeps")
    for number, gauge in enumerate(gauges):
        if any(np.array_equal(gauge, earlier) for earlier in gauges[:number]):
            continue
        solver = _factorise(x, m, z, gauge)
        if solver is None:
            continue
        terms = solver.terms(probe)
        if wrong := _mismatch(terms, own, probe, _MISMATCH):
            worst = NotLinear(f"step {wrong[0]} {_NO_FUNCTION} (error {wrong[1]:.1e})")
            continue
        # Cancelling terms cost digits in float32: count them against the scheduler's own terms.
        cost = (solver.C.shape[1], round(float((terms.abs().sum(0) / own).mean(1).max()), 3))
        if best is None or cost < best_cost:
            best, best_cost = solver, cost
    if best is None:
        raise worst
    return replace(best, cancellation=best_cost[1])


def check_elsewhere(solver: Solver, probe: Probe) -> None:
    """Raise NotLinear unless the rows hold for data of another shape too; probe: with that data."""
    own = _own_terms(probe, probe.x, probe.m)
    # Data of its own, on which terms may cancel more.
    allowed = _MISMATCH * max(1.0, solver.cancellation)
    if wrong := _mismatch(solver.terms(probe), own, probe, allowed):
        raise NotLinear(
            f"step {wrong[0]} does something else to latents of another shape, or when run again "
            f"(error {wrong[1]:.1e})"
        )


def _mismatch(terms: Tensor, own: Tensor, probe: Probe, allowed: float) -> tuple[int, float] | None:
    """The step that the terms miss by most and by how much of its own; None where none is missed.

    terms: [terms, T, D]. own: [T, D].
    """
    error = ((terms.sum(0) - probe.data_x[1:]).abs() / own).amax(1)
    # NaN is missed.
    if (error <= allowed).all():
        return None
    step = int(error.argmax())
    return step, float(error[step])


def _own_terms(probe: Probe, x: Tensor, m: Tensor) -> Tensor:
    """[T, D]: the size of what the scheduler itself adds up for every element."""
    own = x.abs() @ probe.data_x[:-1].abs() + m.abs() @ probe.data_m.abs()
    noise = probe.z.abs().flatten(1) @ probe.data_z.abs().flatten(0, 1)
    return own + noise.clamp(min=1e-300)


def _read_later(x: np.ndarray, m: np.ndarray, or_now: bool) -> np.ndarray:
    """Return the direction (p, q) in which later steps read column j: [T, 2], max norm 1, q >= 0.

    A column read in two directions has an anchor mixed in, which leaves its direction free: it
    takes that of the next column, the most natural one. A column that no later step reads keeps the
    model output; or_now: what its own step reads, all of h where that step starts from an anchor.
    """
    gauge = np.tile([0.0, 1.0], (len(x) + 1, 1))
    size = np.maximum(np.abs(x), np.abs(m))
    bound = _TOLERANCE * size.max(axis=1)
    for j in reversed(range(len(x))):
        first = j if or_now and not size[j + 1 :, j].any() else j + 1
        if not size[first:, j].any():
            continue
        largest = first + int(size[first:, j].argmax())
        p, q = x[largest, j] / size[largest, j], m[largest, j] / size[largest, j]
        p, q = (v if abs(v) > _TOLERANCE else 0 * v for v in (p, q))
        across = np.abs(x[first:, j] * q - m[first:, j] * p)
        sign = np.sign(q) if q else np.sign(p)
        if (across > bound[first:]).any() or (not q and m[j, j]):
            p, q, sign = (*gauge[j + 1], 1) if gauge[j + 1, 1] else (*gauge[-1], 1)
        gauge[j] = p * sign, q * sign
    return gauge[:-1]


def _factorise(x: np.ndarray, m: np.ndarray, z: np.ndarray, gauge: np.ndarray) -> Solver | None:
    """Write every row through the h of the gauge, with the fewest lags.

    Row i says x_{i+1} = sum_j x[i, j] x_j + m[i, j] m_j + noise, and row i - 1 says the same of
    x_i; so back * (x_i - row i - 1) = 0 may be added. None where no `back` leaves row i in the
    gauge and free of older noise.
    """
    p, q = gauge.T
    across = x * q - m * p
    along = (x * p + m * q) / (p * p + q * q)
    # Where q = 0 the step reads no m_i either, and its h_i is x_i.
    A, own = x.diagonal().copy(), m.diagonal() / np.where(q == 0, 1, q)
    bounds = _TOLERANCE * np.maximum(np.abs(x), np.abs(m)).max(axis=1)
    rows = []
    for i in range(len(x)):
        solved = _eliminate(across[: i + 1], along[: i + 1], z[: i + 1], i, float(bounds[i]))
        if solved is None:
            return None
        back, lags = solved
        row = along[i, i - lags : i]
        if back:
            row = row - back * along[i - 1, i - lags : i]
            A[i] += back
        rows.append(row)
    A -= own * p
    C = np.zeros((len(x), 1 + max(map(len, rows))))
    C[:, 0] = own
    for i, row in enumerate(rows):
        C[i, 1 : 1 + len(row)] = row[::-1]
    here = range(len(x))
    numbers = (p.copy(), q.copy(), A, C, z[here, here])
    return Solver(*map(torch.from_numpy, numbers))


def _eliminate(
    across: np.ndarray, along: np.ndarray, z: np.ndarray, i: int, bound: float
) -> tuple[float, int] | None:
    """Return (back, lags left), fewest lags first; back = 0 is preferred, being exact."""
    rows = slice(i, None) if not i else slice(i - 1, None)
    # Newest row first; what must vanish whatever the lags, and what only with fewer of them.
    always = np.concatenate((across[rows, :i], z[rows, :i].reshape(len(z[rows]), -1)), axis=1)[::-1]
    older = along[rows, :i][::-1]
    for lags in range(i + 1):
        gone = np.concatenate((always, older[:, : i - lags]), axis=1)
        if not gone.size or np.abs(gone[0]).max() <= bound:
            return 0.0, lags
        square = gone[1] @ gone[1] if len(gone) > 1 else 0.0
        if square > 0:
            back = gone[0] @ gone[1] / square
            if np.abs(gone[0] - back * gone[1]).max() <= bound * (1 + abs(back)):
                return float(back), lags
    return None
