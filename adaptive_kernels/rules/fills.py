"""The host-made numbers of a fill, its repair and the length of a run, as the kernels read them.

Noise predictions are extrapolated over lam = -ln sb, sb = sigma / alpha; n0 > n1 are the last two
refreshes before step i:

    fill       f(lam_i) = (1 + g) E_0 - g E_1,   g = (lam_i - lam_n0) / (lam_n0 - lam_n1)
    repair     had the skipped steps used rho_j delta more, rho_j = (lam_j - lam_n0)(lam_j - lam_n1)
               / ((lam_i - lam_n0)(lam_i - lam_n1)) or, on the first output alone, (lam_j - lam_n0)
               / (lam_i - lam_n0), x_{i+1} would be dx delta away: c delta on top
               of the new output makes up for the share 1 / (1 + |dx_i| / sigma_i) of it

How far a run goes, and what a network's rounding counts for, is module `defect`.

The response dx is the table's own recurrence, so any linear solver has its repair. It is exact for
solvers of one step; one with a history or two stages keeps a part of the error in its history,
which later steps bring back. A solver that adds noise moves its noise prediction by it at every
step; there the x0 prediction is extrapolated instead, and nothing is repaired, because the defect
is mostly the new noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._device import set_device

from ..solvers.table import SolverTable
from .config import AdaptiveConfig
from .criteria import longest_run
from .defect import FIRST_RATE, run_table
from .laws import warmup_for
from .planned import planned_tables
from .precision import noise_shares
from .tables import FillTables, pack, rows_of

# Data of about unit spread: sb at which an error of the noise prediction stops mattering.
SPREAD = 4.0
# Levels closer than this in lam are one level: the two stages of a step, PNDM's repeated one.
SAME = 1e-9


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The prediction that is kept and extrapolated, e = u x + w m, and what a step does with it."""

    u: Tensor  # [T] float64
    w: Tensor
    ps: Tensor  # h = ps x + qs e
    qs: Tensor
    lam: Tensor  # [T] float64, finite
    asinh: Tensor  # [T + 1] float64


@set_device("cpu")
def coordinates(table: SolverTable) -> Coordinates:
    """The coordinates a fill of this table works in.

    Raises: ValueError where the table's noise levels are not known.
    """
    levels = table.levels
    if table.num_steps == 1:
        # A single row is never skipped: any coordinates serve, the network's own among them.
        zero, two = torch.zeros_like(table.p), torch.zeros(2, dtype=torch.float64)
        return Coordinates(zero, torch.ones_like(table.p), table.p, table.q, zero, two)
    if levels is None:
        raise ValueError(
            f"fill must be 'reuse' for {table}: its scheduler's noise levels are not known, as "
            "neither add_noise() nor the schedule it keeps fits its own steps; "
            "config=AdaptiveConfig.paper() does without (criterion 'third_order'), as do "
            "'released' and 'every(k)'"
        )
    alpha, sigma, a, b = levels.alpha[:-1], levels.sigma[:-1], levels.a, levels.b
    det = b * alpha - a * sigma
    if table.adds_noise:
        u, w = b / det, -sigma / det
    else:
        u, w = -a / det, alpha / det
    # At alpha = 0 the latents are the noise whatever the network says; only row 0 can stand there,
    # and it is never skipped.
    usable = w.abs() > 1e-6
    inverse = torch.where(usable, 1 / torch.where(usable, w, 1.0), 0.0)
    lam = (alpha / sigma).log()
    for i in reversed(range(len(lam))):
        if not lam[i].isfinite():
            ahead = [float(v) for v in lam[i + 1 : i + 3]] + [0.0, 1.0]
            lam[i] = 2 * ahead[0] - ahead[1]
    sb = torch.cat(((-lam).exp(), (levels.sigma[-1:] / levels.alpha[-1:])))
    return Coordinates(
        u, w, table.p - table.q * u * inverse, table.q * inverse, lam, torch.asinh(sb / SPREAD)
    )


@set_device("cpu")
def fill_tables(table: SolverTable, config: AdaptiveConfig) -> FillTables:
    """The numbers of `config` for the solver `table`.

    Raises: ValueError where the fill does not go with the table, or the plan was made for another.
    """
    full, rule = config.resolved(table), config.rule(table)
    # A network takes int64 or float32: other timesteps of a scheduler are rounded to float32.
    timestep = table.timesteps[:1]
    timestep = timestep if timestep.dtype == torch.int64 else timestep.float()
    first = float(table.input_scale[0]), timestep, full.threshold, table.adds_noise, (table, config)
    if full.fill == "reuse":
        ones, zeros = torch.ones_like(table.p), torch.zeros_like(table.p)
        rows = rows_of(table, zeros, ones, table.p, table.q)
        return FillTables(rows, None, None, rule, *first)
    coords = coordinates(table)
    rows = rows_of(table, coords.u, coords.w, coords.ps, coords.qs)
    if full.fill == "fitted":
        return FillTables(rows, *planned_tables(table, config), rule, *first)
    if full.fill != "linear":
        raise ValueError(f"fill must be one that has tables, got {full.fill!r}")
    size = longest_run(rule, table.num_steps)
    if full.repair and table.adds_noise:
        raise ValueError(
            f"repair must be None or False for {table}, which adds noise: the defect is the noise"
        )
    repair = full.criterion == "defect" if full.repair is None else full.repair
    repair = repair and not table.adds_noise
    weights = linear_weights(table, coords, size, full.warmup, repair)
    if full.criterion != "defect":
        return FillTables(rows, weights.float(), None, rule, *first)
    weights[..., -1] = noise_shares(table, coords.w, full.output_noise)[:, None, None]
    costs = run_table(table, coords.lam, coords.asinh, weights, full.max_skip, repair)
    return FillTables(rows, weights.float(), costs.float(), rule, *first)


def linear_weights(
    table: SolverTable, coords: Coordinates, size: int, warmup: int, repair: bool
) -> Tensor:
    """[T, size, size, 8] float64: entries of the linear fill by step, gap and previous gap.

    Their noise, the last, is zero.
    """
    steps, lam = table.num_steps, coords.lam
    i = torch.arange(steps)[:, None, None]
    gap = torch.arange(1, size + 1)[None, :, None]
    previous = torch.arange(1, size + 1)[None, None, :]
    n0, n1 = (i - gap).expand(steps, size, size), (i - gap - previous)
    # Where the two newest outputs share a level, the one before them serves if it surely exists.
    forced = (n1 >= 1) & ((table.stages > 1) | (n1 - 1 < warmup * table.stages))
    same = (n1 >= 0) & ((lam[n0.clamp(0)] - lam[n1.clamp(0)]).abs() < SAME)
    third = same & forced
    base = torch.where(third, n1 - 1, n1)
    lam_i, first, second = lam[i], lam[n0.clamp(0)], lam[base.clamp(0)]
    usable = (base >= 0) & ((first - second).abs() >= SAME)
    slope = torch.where(usable, (lam_i - first) / torch.where(usable, first - second, 1.0), 0.0)
    # Of the first output alone there is no line: its rate is of first order.
    alone = (n0 == 0) & ~usable
    product = (lam_i - first) * torch.where(alone, 1.0, lam_i - second)
    measures = (usable | alone) & (product.abs() >= SAME)
    zero = torch.zeros_like(slope)
    fill = (1 + slope, torch.where(third, zero, -slope), torch.where(third, -slope, zero))
    spread = torch.where(measures, 1 / torch.where(measures, product.abs(), 1.0), torch.inf)
    if warmup_for(table) == 1:
        # A spread below zero tells the kernels that there is no noise to be told (module `defect`).
        rate = FIRST_RATE + lam[0].exp()
        spread = torch.where(alone, -spread, torch.where(i == 0, -rate, spread))
    else:
        spread = torch.where(alone, torch.inf, spread)
    again = (zero, zero, zero)
    if repair:
        c = repairs(table, coords, size, first, second, alone)
        c = torch.where(measures & ~third, c, 0.0)
        again = (c, -c * fill[0], -c * fill[1])
    return pack(torch.stack(fill, dim=-1), torch.stack(again, dim=-1), spread)


def repairs(
    table: SolverTable,
    coords: Coordinates,
    size: int,
    first: Tensor,  # [T, size, size] float64: lam of the last refresh
    second: Tensor,  # of the one before
    alone: Tensor,  # bool: whether there was none
) -> Tensor:
    """[T, size, size] float64: c of every step, gap and previous gap."""
    steps, depth = table.num_steps, table.history
    c = torch.zeros(steps, size, size, dtype=torch.float64)
    for gap in range(2, size + 1):
        i = torch.arange(gap, steps)
        a, b, only = first[i, gap - 1], second[i, gap - 1], alone[i, gap - 1]

        def grown(j: Tensor, a=a, b=b, only=only) -> Tensor:
            """What rho_j is a multiple of."""
            lam = coords.lam[j, None]
            return (lam - a) * torch.where(only, 1.0, lam - b)

        scale = grown(i)
        scale = torch.where(scale.abs() < SAME, torch.inf, scale)
        dx = torch.zeros(len(i), size, dtype=torch.float64)
        dh: list[Tensor] = []
        for k in range(1, gap):
            j = i - gap + k
            rho = grown(j) / scale
            dh.append(coords.ps[j, None] * dx + coords.qs[j, None] * rho)
            dx = _respond(table, j, dx, dh, depth)
        dh.append(coords.ps[i, None] * dx)
        target = _respond(table, i, dx, dh, depth)
        unit = (table.C[i, 0] * coords.qs[i])[:, None]
        damping = 1 / (1 + dx.abs() / table.levels.sigma[i, None])
        c[i, gap - 1] = torch.where(
            unit.abs() > 1e-12, damping * target / torch.where(unit == 0, 1.0, unit), 0.0
        )
    return c


def _respond(table: SolverTable, j: Tensor, dx: Tensor, dh: list[Tensor], depth: int) -> Tensor:
    """x_{j+1}'s response to those of x_j and of the h so far, newest last."""
    out = table.A[j, None] * dx
    for k in range(min(depth, len(dh))):
        out = out + table.C[j, k, None] * dh[-1 - k]
    return out
