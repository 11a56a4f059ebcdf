"""A table tells how far its full run ends from the exact solution."""

import copy
import itertools
import math

import diffusers
import pytest
import torch

from adaptive_kernels.solvers.table import SolverTable
from tests.support import problems

TRAILING = {"timestep_spacing": "trailing", "beta_schedule": "linear"}
MAKE = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, **TRAILING),
    "v": lambda: diffusers.DDIMScheduler(
        clip_sample=False, prediction_type="v_prediction", **TRAILING
    ),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**TRAILING),
    "dpm2m": lambda: diffusers.DPMSolverMultistepScheduler(**TRAILING),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**TRAILING),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**TRAILING),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


def sampled_error(scheduler, table):
    """The same by sampling: the scheduler itself steps Gaussian data, whose best network is known.

    x_0 stands on the exact solution, whose every x_i has the spread v_i.
    """
    s = torch.logspace(-2, 0, 25, dtype=torch.float64)[:, None]
    levels, stepping = table.levels, copy.deepcopy(scheduler)
    spread = (levels.alpha.square() * s.square() + levels.sigma.square()).sqrt()  # [25, T + 1]
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    noise = noise / noise.square().mean().sqrt()
    x = noise * spread[:, :1]
    stepping.set_timesteps(table.num_steps if table.stages == 1 else (table.num_steps + 1) // 2)
    for i, t in enumerate(stepping.timesteps):
        alpha, sigma = levels.alpha[i], levels.sigma[i]
        x0 = x * alpha * s.square() / spread[:, i, None] ** 2
        eps = x * sigma / spread[:, i, None] ** 2
        x = stepping.step(levels.a[i] * x0 + levels.b[i] * eps, t, x).prev_sample
    exact = noise * spread[:, -1:]
    in_units_of_data = (x - exact) * (s / spread[:, -1:])
    return in_units_of_data.square().mean().sqrt().item()


@pytest.mark.parametrize("name", MAKE)
def test_the_error_is_that_of_the_scheduler_on_gaussian_data(name):
    scheduler = MAKE[name]()
    table = SolverTable.from_scheduler(scheduler, 20)
    assert table.error == pytest.approx(sampled_error(scheduler, table), rel=1e-3)


@pytest.mark.parametrize("name", ["ddim", "dpm2m", "unipc", "flow"])
def test_more_steps_stand_closer(name):
    errors = [SolverTable.from_scheduler(MAKE[name](), n).error for n in (10, 20, 50, 100, 250)]
    assert all(more < 0.75 * fewer for fewer, more in itertools.pairwise(errors))


def test_what_a_network_predicts_does_not_matter():
    v, epsilon = (SolverTable.from_scheduler(MAKE[name](), 25).error for name in ("v", "ddim"))
    assert v == pytest.approx(epsilon, rel=1e-4)


def test_many_steps_have_next_to_none():
    table = SolverTable.from_scheduler(MAKE["ddim"](), 1000)
    assert 0 < table.error < 3e-3


@pytest.mark.parametrize(
    "table",
    [
        problems.table(12, stochastic=True),
        SolverTable.from_scheduler(MAKE["ddim"](), 20, step_kwargs={"eta": 1.0}),
        SolverTable.from_scheduler(MAKE["ddim"](), 1),
    ],
)
def test_where_it_is_not_known(table):
    assert table.error is None


def test_of_a_part_of_the_schedule():
    whole = SolverTable.from_scheduler(MAKE["ddim"](), 50)
    part = SolverTable.from_scheduler(MAKE["ddim"](), 50, strength=0.6)
    assert 0.2 * whole.error < part.error <= whole.error
    # Inversion, too: an image's error is told in the data's units, not in the noise's.
    rising = diffusers.DDIMInverseScheduler(clip_sample=False)
    assert 0.2 < SolverTable.from_scheduler(rising, 50).error / whole.error < 5
    assert math.isfinite(whole.error)
