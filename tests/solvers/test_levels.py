"""The noise levels of a table are the scheduler's own, and its prediction is the configured one."""

import diffusers
import pytest
import torch

from adaptive_kernels.solvers.table import SolverTable
from tests.support.schedulers import (
    CASE,
    CASES,
    KNOWN_LEVELS,
    UNKNOWN_LEVELS,
    follow,
    prepare,
    table_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

U = 2.0**-24
# DEIS of order 3 takes differences of nearly equal integrals in float32.
STEPS = {"deis-3": (5,)} | dict.fromkeys(("ddim", "dpm-2m", "euler", "flow-euler"), (5, 10, 50))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_prediction_is_the_configured_one(case):
    config = case.make().config
    expected = config.get("prediction_type", "flow_prediction")
    if case.scheduler.startswith("EDM"):
        expected = "edm"
    for steps in (5, 10):
        levels = table_of(case.id, steps).levels
        assert (levels is None) == (case.id in UNKNOWN_LEVELS)
        if levels is not None:
            assert levels.prediction == expected
            assert levels.a.shape == levels.b.shape == (table_of(case.id, steps).num_steps,)
            assert expected in repr(levels)


@pytest.mark.parametrize(
    "name", ["ddim-v", "euler", "euler-v", "dpm-2m-flow", "flow-euler", "heun"]
)
def test_two_steps_are_enough_to_tell_the_prediction(name):
    expected = CASE[name].make().config.get("prediction_type", "flow_prediction")
    assert table_of(name, 2).levels.prediction == expected


def own_levels(scheduler, timesteps):
    """alpha and sigma of every row as the scheduler's formulas have them."""
    if not hasattr(scheduler, "sigmas"):
        kept = scheduler.alphas_cumprod.double()[timesteps]
        return kept.sqrt(), (1 - kept).sqrt()
    sigma = scheduler.sigmas.double()[: len(timesteps)]
    if scheduler.config.get("use_flow_sigmas") or "Flow" in type(scheduler).__name__:
        return 1 - sigma, sigma
    if "DPM" in type(scheduler).__name__ or "UniPC" in type(scheduler).__name__:
        alpha = (1 + sigma.square()).rsqrt()
        return alpha, sigma * alpha
    return torch.ones_like(sigma), sigma


@pytest.mark.parametrize(
    "name",
    [
        *("ddim", "ddim-v", "ddim-v-zero-snr", "ddpm", "pndm", "tcd"),
        *("euler", "euler-karras", "euler-ancestral", "heun", "lms"),
        *(
            "dpm-1",
            "dpm-2m",
            "dpm-2m-karras",
            "dpm-sde-2m",
            "unipc-2",
            "dpm-2m-flow",
            "unipc-3-flow",
        ),
        *("flow-euler", "flow-euler-dynamic", "flow-heun", "flow-euler-stochastic"),
    ],
)
def test_levels_are_the_schedulers_own(name):
    for steps in (5, 10):
        scheduler, timesteps = prepare(CASE[name], steps)
        levels = table_of(name, steps).levels
        for ours, theirs in zip(
            (levels.alpha, levels.sigma), own_levels(scheduler, timesteps), strict=True
        ):
            # Two or three float32 roundings; the square root of 1 - alphas_cumprod halves one of
            # an alphas_cumprod near 1.
            bound = 4 * U * (theirs + 1 / theirs.clamp(min=0.01))
            assert ((ours[:-1] - theirs).abs() <= bound).all()


def test_a_level_where_the_image_is_gone():
    for name in ("ddim-v-zero-snr", "flow-euler", "flow-heun"):
        levels = table_of(name, 10).levels
        assert levels.alpha[0].abs() < 1e-6 and levels.sigma[0] == pytest.approx(1)
        assert levels.alpha[-1] == pytest.approx(1) and levels.sigma[-1].abs() < 1e-6


@pytest.mark.parametrize("case", KNOWN_LEVELS, ids=lambda case: case.id)
def test_a_constant_image_and_noise_are_carried_by_the_table(case):
    """x_i = alpha_i x0 + sigma_i eps up to the result; x0 alone where the solver adds noise."""
    for steps in STEPS.get(case.id, (5, 10)):
        table = table_of(case.id, steps)
        levels = table.levels
        parts = torch.eye(2, dtype=torch.float64)
        exact = levels.alpha[:, None] * parts[0] + levels.sigma[:, None] * parts[1]
        outputs = levels.a[:, None] * parts[0] + levels.b[:, None] * parts[1]
        ours, _ = follow(table, exact[0], lambda i, x, m=outputs: m[i], torch.zeros(len(outputs)))
        if table.S.any():
            ours, exact = ours[:, :1], exact[:, :1]
        # Three float32 roundings of latents that start at alpha = 0.006.
        limit = 3e-5
        size = exact.norm(dim=1, keepdim=True)
        assert ((ours - exact).abs() <= limit * size).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_single_row_has_no_levels_and_is_still_a_table(case):
    table = SolverTable.from_scheduler(
        case.make(), 10, begin_index=len(prepare(case, 10)[1]) - 1, **case.kwargs
    )
    assert table.num_steps == 1 and table.levels is None


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [7, 28, 45, 333])
def test_rounded_trailing_timesteps_leave_the_prediction_clear(steps, prediction):
    """1000 / steps is no whole number: DDIM steps to one timestep and calls at its neighbour."""
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", prediction_type=prediction
    )
    assert SolverTable.from_scheduler(scheduler, steps).levels.prediction == prediction
