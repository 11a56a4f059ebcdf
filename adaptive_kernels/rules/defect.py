"""What the rule `defect` predicts of a run, and how it tells a fill's error from a network's noise.

A sample keeps the rate D of its fill's error, the variance s2 of what a half-precision network adds
to its guided outputs, and the noise P_k of each kept output in units of s2. At a refresh at i, with
n0 > n1 the last two before it, f the fill's weights, and R_i the noise of an output u x + w m in
units of s2 (w_i^2):

    fill's noise   V = sum_k f_k^2 P_k
    keep           share = s2 R / (S^2 + s2 (V + R)),  S = D |(lam_i - lam_n0)(lam_i - lam_n1)|
                   output kept = e - share delta,  P = (1 - share)^2 R + share^2 V
    defect         d^2 = mean(delta^2);  s2 = min(1.1 (first d^2) / (V + R), most)
    rate           n = s2 (V + R),  p = |(lam_i - lam_n0)(lam_i - lam_n1)|;  D^2 becomes 0.4 D^2,
                   but no less than (d^2 - 1.5 n) / p^2 and no more than (d^2 - 0.5 n) / p^2
    run            predicted error after q skipped steps
                   sqrt((D sum_j |du_j (lam_j - lam_i)(lam_j - lam_n0)|)^2 + 0.12 s2 max(0,
                   sum_k a_k^2 P_k - b)),  a_k = sum_j |du_j| f_jk,  b = sum_j (|du_j|)^2 R_j

with u = asinh(sb / 4). A run on the first output, or on the first two, is taken for one of first
order: D = d / |lam_i - lam_n0|, of the first output 0.026 + alpha / sigma, and the predicted error
is 0.6 D sum_j |du_j (lam_j - lam_i)|; it reaches 0.85 in lam at most. A run that ends with the
sampling is not repaired and counts three times.

Without noise (s2 = 0) D = d / |..|, and the output is kept as it is. A refresh's share is known
before its defect is, so that one pass over the latents does both; it is a multiple of 1/256, for
sums may differ between devices in their last bits.

A network's rounding is white from step to step, where a fill's error is smooth: what a defect holds
beyond the rounding that was seen, by half as much again, is the fill's for certain, and what it
holds beyond half of it may be.
"""

import torch
from torch import Tensor

from ..solvers.table import SolverTable
from .laws import warmup_for
from .tables import OUTPUTS, PREDICTORS

# Columns of a sample's `measures` under this rule: D, s2, P_0 .. P_2, share of the next refresh.
RATE, VARIANCE, NOISE, SHARE = 0, 1, 2, 2 + OUTPUTS
# How far the noise of a defect may be from what was measured, in units of it.
DOUBT = 0.5
# Share of D^2 that stands from one refresh to the next where noise hides the new one.
STANDS = 0.4
# Of the noise that a run adds to a result, against its threshold: it is white, and the error of a
# fill is not.
NOISE_COUNTS = 0.12
# A network is noisier towards the end of a sampling than where its first defect is measured.
GROWS = 1.1
# Before there is a second output: what noise predictions, rms 1, change by per unit of lam at high
# noise; nearer to the data, of unit spread, alpha / sigma comes on top.
FIRST_RATE = 0.026
# Of the error predicted of a run from a first-order rate, what is left after its repair.
FIRST_COUNTS = 0.6
# How far in lam such a run reaches at most, to the refresh after it; of longer ones the predicted
# error is NaN, which calls the network.
FIRST_REACH = 0.85
# An error that no refresh will repair counts so many times.
LAST = 3.0
SHARES = 256.0


def run_table(
    table: SolverTable, lam: Tensor, asinh: Tensor, weights: Tensor, max_skip: int, repair: bool
) -> Tensor:
    """[T, G, Q, 5] float64: predicted error per unit of D after 1 .. Q skipped steps, a_k and b.

    Args:
        lam, asinh: [T] and [T + 1] float64, of `fills.Coordinates`.
        weights: [T, G, G, 8] float64, the fill's, with R in the last place.
        repair: whether a refresh makes up for a part of what the run before it missed.
    """
    steps, stages, size = table.num_steps, table.stages, weights.shape[1]
    count = max(1, min(max_skip, steps))
    # Both stages of a step carry it, whichever of them moves the level.
    whole = torch.arange(steps) // stages * stages
    end = (whole + stages).clamp(max=steps)
    weight = (asinh[end] - asinh[whole]).abs() / (end - whole)
    i, gap = torch.arange(steps)[:, None], torch.arange(size)[None, :]
    n0 = (i - 1 - gap).clamp(0)
    first = (i - 1 - gap <= 0) & (warmup_for(table) == 1)
    total = torch.zeros(steps, size, PREDICTORS, dtype=torch.float64)
    out = []
    for q in range(count):
        for stage in range(stages):
            j = i + 1 + q * stages + stage
            inside = (j < steps)[..., None]
            ahead = (j - i - 1).clamp(max=size - 1)
            j = j.clamp(max=steps - 1)
            ahead_of = lam[j] - lam[i]
            product = torch.where(first, FIRST_COUNTS * ahead_of, ahead_of * (lam[j] - lam[n0]))
            reach = (lam[(j + 1).clamp(max=steps - 1)] - lam[i]).abs()
            product = torch.where(first & (reach > FIRST_REACH), torch.nan, product)
            entry = weights[j, ahead, gap]
            noise = (weight[j].square() * entry[..., -1])[..., None]
            # Nothing is predicted without error, not even at the level of the refresh itself.
            term = (weight[j] * product.abs()).clamp(min=1e-12)[..., None]
            terms = torch.cat((term, weight[j][..., None] * entry[..., :OUTPUTS], noise), dim=-1)
            total = total + torch.where(inside, terms, 0.0)
        # Nothing repairs a run that no refresh follows.
        last = (i + 1 + q * stages + stages >= steps) & repair
        whole_run = torch.where(
            last[..., None], total * total.new_tensor([LAST, 1, 1, 1, 1]), total
        )
        out.append(whole_run)
    return torch.stack(out, dim=2)


def terms(measures: Tensor, entry: Tensor) -> tuple[Tensor, Tensor]:
    """[...] float64: the predicted error of a run without noise, and the square of it with noise.

    Args:
        measures: [..., 6] float64, the columns above. entry: [..., 5] float64, of `run_table`.
    """
    clean = measures[..., RATE] * entry[..., 0]
    noise = sum(
        entry[..., 1 + k] * entry[..., 1 + k] * measures[..., NOISE + k] for k in range(OUTPUTS)
    )
    noise = (noise - entry[..., 1 + OUTPUTS]).clamp(min=0.0)
    return clean, clean * clean + NOISE_COUNTS * measures[..., VARIANCE] * noise


def predict(measures: Tensor, entry: Tensor) -> Tensor:
    """[...] float64: the predicted error of a run, in units of 4; arguments as `terms` has them."""
    clean, square = terms(measures, entry)
    return torch.where(measures[..., VARIANCE] > 0, square.sqrt(), clean)


def noise_of_fill(measures: Tensor, entry: Tensor) -> Tensor:
    """V; entry: [..., 8] float64, of the weights."""
    return sum(entry[..., k] * entry[..., k] * measures[..., NOISE + k] for k in range(OUTPUTS))


def measure(measures: Tensor, entry: Tensor, square: Tensor, most: Tensor) -> Tensor:
    """[..., 6]: the measures after a defect of mean square `square`.

    Args:
        measures: [..., 6] float64. entry: [..., 8] float64, the weights of the refresh.
        square: [...] float64. most: [...] float64, the largest s2; 0 where there is no noise.
    """
    rate, variance, spread = measures[..., RATE], measures[..., VARIANCE], entry[..., 6].abs()
    line = entry[..., 6] >= 0
    both = noise_of_fill(measures, entry) + entry[..., 7]
    found = GROWS * square / both
    first = (variance == 0) & spread.isfinite()
    variance = torch.where(first, torch.where(found < most, found, most), variance)
    noise = variance * both
    least = (square - (1 + DOUBT) * noise).clamp(min=0.0) * spread * spread
    largest = (square - (1 - DOUBT) * noise).clamp(min=0.0) * spread * spread
    # What the rate was before the first measure is of another order.
    stands = torch.where(first, torch.inf, STANDS * rate * rate)
    stands = torch.where(stands.isfinite() & (stands < largest), stands, largest)
    noisy = torch.where(stands < least, least, stands).sqrt()
    usable = (most > 0) & line & square.isfinite() & spread.isfinite()
    out = measures.clone()
    out[..., RATE] = torch.where(usable, noisy, square.sqrt() * spread)
    out[..., VARIANCE] = torch.where(usable, variance, measures[..., VARIANCE])
    return out


def kept(measures: Tensor, entry: Tensor) -> Tensor:
    """[..., 6]: the measures after an output was kept: its own noise is P_0."""
    share = measures[..., SHARE]
    own = (1 - share) * (1 - share) * entry[..., 7]
    own = own + share * share * noise_of_fill(measures, entry)
    out = measures.clone()
    out[..., NOISE + 1 : NOISE + OUTPUTS] = measures[..., NOISE : NOISE + OUTPUTS - 1]
    out[..., NOISE] = own
    return out


def share(measures: Tensor, entry: Tensor) -> Tensor:
    """[...] float64: the share of its defect that the next refresh leaves out of what it keeps.

    0 but for a line through the last two outputs: where those share a level, nothing is left out.

    Args:
        entry: [..., 8] float64, the weights of that refresh.
    """
    rate, variance = measures[..., RATE], measures[..., VARIANCE]
    square = entry[..., 6] * entry[..., 6]
    noise = variance * entry[..., 7] * square
    both = rate * rate + variance * noise_of_fill(measures, entry) * square + noise
    value = (noise / both * SHARES + 0.5).floor() * (1 / SHARES)
    line = (entry[..., 0] != 0) & (entry[..., 1] != 0)
    usable = (noise > 0) & (value > 0) & square.isfinite() & line
    return torch.where(usable, value, 0.0)
