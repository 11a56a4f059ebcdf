"""Solver noise is a function of (seed, step, element) alone, and is standard normal."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_kernels.ops import reference
from adaptive_kernels.sampling.state import State
from tests.support import problems


def noise_of_the_op(seeds, elements, step):
    """z of the op: a table that does nothing but add S z at `step`."""
    table = problems.table(step + 1, stochastic=True)
    state = State.begin(
        table, torch.zeros(len(seeds), elements), problems.AdaptiveConfig.paper(), seed=seeds
    )
    state.rows[:, :6] = 0
    state.rows[:, 6:] = 0
    state.rows[:, 3] = 1
    state.progress[0] = step
    state.step(True)
    return state.current()


def test_philox_is_philox_4x32_10():
    """Known answers of Random123 for a zero and an all-ones key (counter zero)."""
    zero = [b.item() for b in reference.philox(torch.tensor([0]), torch.tensor([0]), 1)]
    assert zero == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    elements=st.integers(1, 5000),
    step=st.integers(0, 60),
)
def test_op_and_reference_draw_the_same_noise(seed, elements, step):
    seeds = torch.tensor([seed])
    expected = reference.normal(seeds, torch.tensor([step]), elements)
    # The error bound of problems.update_bound for Box-Muller in float32.
    assert (noise_of_the_op(seeds, elements, step) - expected).abs().max() <= 17 * 6 * problems.EPS


def test_noise_does_not_depend_on_the_batch():
    seeds = torch.tensor([5, 6, 7, 5])
    together = noise_of_the_op(seeds, 1001, 3)
    for b in range(4):
        assert torch.equal(noise_of_the_op(seeds[b : b + 1], 1001, 3)[0], together[b])
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, noise_of_the_op(seeds, 1001, 4))


def test_noise_is_standard_normal():
    """Moments and the Kolmogorov-Smirnov distance of 2^20 draws, each within five deviations."""
    z = noise_of_the_op(torch.arange(16), 65536, 2).double().flatten()
    n = z.numel()
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    rank = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    distance = (torch.special.ndtr(z.sort().values) - rank).abs().max()
    assert distance < 2.2 / math.sqrt(n)  # exceeded once in 16,000 true samples
    pairs = (z[:-1] * z[1:]).mean()
    assert abs(pairs) < 5 / math.sqrt(n)
