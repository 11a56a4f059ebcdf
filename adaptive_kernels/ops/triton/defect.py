"""What the rule `defect` keeps of a sample, in Triton: csrc/core/defect.h."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...rules import defect

DOUBT, STANDS = tl.constexpr(defect.DOUBT), tl.constexpr(defect.STANDS)
NOISE_COUNTS, SHARES = tl.constexpr(defect.NOISE_COUNTS), tl.constexpr(defect.SHARES)
SHARE, GROWS = tl.constexpr(defect.SHARE), tl.constexpr(defect.GROWS)


class Measures(NamedTuple):
    """The columns of `measures` under this rule; float64."""

    rate: Any
    variance: Any
    noise_0: Any
    noise_1: Any
    noise_2: Any
    share: Any


class Entry(NamedTuple):
    """What it reads of an entry of the weights; float64."""

    f0: Any
    f1: Any
    f2: Any
    spread: Any
    noise: Any


@triton.jit
def measures_at(to):
    return Measures(
        tl.load(to), tl.load(to + 1), tl.load(to + 2), tl.load(to + 3), tl.load(to + 4),
        tl.load(to + 5),
    )  # fmt: skip


@triton.jit
def store_measures(to, m):
    tl.store(to, m.rate)
    tl.store(to + 1, m.variance)
    tl.store(to + 2, m.noise_0)
    tl.store(to + 3, m.noise_1)
    tl.store(to + 4, m.noise_2)
    tl.store(to + 5, m.share)


@triton.jit
def entry_at(w):
    return Entry(
        tl.load(w).to(tl.float64), tl.load(w + 1).to(tl.float64), tl.load(w + 2).to(tl.float64),
        tl.load(w + 6).to(tl.float64), tl.load(w + 7).to(tl.float64),
    )  # fmt: skip


@triton.jit
def finite(value):
    return tl.abs(value) < float("inf")


@triton.jit
def noise_of_fill(m, w):
    return (w.f0 * w.f0 * m.noise_0 + w.f1 * w.f1 * m.noise_1) + w.f2 * w.f2 * m.noise_2


@triton.jit
def not_below_zero(value):
    return tl.where(value < 0, 0.0, value)


@triton.jit
def measure(m, w, square, most):
    """After a defect of mean square `square`; `most`: the largest s2."""
    both, spread, first = noise_of_fill(m, w) + w.noise, tl.abs(w.spread), m.variance == 0
    found = GROWS * square / both
    found = tl.where(found < most, found, most)
    variance = tl.where(first, found, m.variance)
    noise = variance * both
    least = not_below_zero(square - (1.0 + DOUBT) * noise) * spread * spread
    largest = not_below_zero(square - (1.0 - DOUBT) * noise) * spread * spread
    stands = tl.where(first, float("inf"), STANDS * m.rate * m.rate)
    stands = tl.where(finite(stands) & (stands < largest), stands, largest)
    rate = tl.sqrt(tl.where(stands < least, least, stands))
    usable = (most > 0) & (w.spread >= 0) & finite(square) & finite(spread)
    return Measures(
        tl.where(usable, rate, tl.sqrt(square) * spread),
        tl.where(usable, variance, m.variance),
        m.noise_0,
        m.noise_1,
        m.noise_2,
        m.share,
    )


@triton.jit
def keep_noise(m, w):
    """After an output was kept: its own noise is P_0."""
    own = (1.0 - m.share) * (1.0 - m.share) * w.noise
    own = own + m.share * m.share * noise_of_fill(m, w)
    return Measures(m.rate, m.variance, own, m.noise_0, m.noise_1, m.share)


@triton.jit
def share_of(m, w):
    """For a refresh with these weights."""
    square = w.spread * w.spread
    noise = m.variance * w.noise * square
    both = m.rate * m.rate + m.variance * noise_of_fill(m, w) * square + noise
    value = tl.floor(noise / both * SHARES + 0.5) * (1.0 / SHARES)
    line = (w.f0 != 0) & (w.f1 != 0)
    return tl.where((noise > 0) & (value > 0) & finite(square) & line, value, 0.0)


@triton.jit
def predict(m, entry):
    """The predicted error of a run; entry: pointer into the rule table."""
    clean = m.rate * tl.load(entry).to(tl.float64)
    a0, a1 = tl.load(entry + 1).to(tl.float64), tl.load(entry + 2).to(tl.float64)
    a2, b = tl.load(entry + 3).to(tl.float64), tl.load(entry + 4).to(tl.float64)
    noise = a0 * a0 * m.noise_0 + a1 * a1 * m.noise_1 + a2 * a2 * m.noise_2
    noise = not_below_zero(noise - b)
    noisy = tl.sqrt(clean * clean + NOISE_COUNTS * m.variance * noise)
    return tl.where(m.variance > 0, noisy, clean)
