"""generator=: the noise of a stochastic solver, as diffusers' own loop draws it."""

import diffusers
import numpy as np
import pytest
import torch

import adaptive_kernels as ak
from tests.support import problems

STEPS = 7
SOLVERS = {
    "EulerAncestral": (lambda: diffusers.EulerAncestralDiscreteScheduler(), {}),
    "DDPM": (lambda: diffusers.DDPMScheduler(clip_sample=False), {}),
    "DDIM": (lambda: diffusers.DDIMScheduler(clip_sample=False), {"eta": 0.7}),
    "LCM": (lambda: diffusers.LCMScheduler(), {}),
    "SDE-DPM++": (
        lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        {},
    ),
    "KDPM2A": (lambda: diffusers.KDPM2AncestralDiscreteScheduler(), {}),
    "Euler": (lambda: diffusers.EulerDiscreteScheduler(), {}),
}


def network(x, timestep):
    return torch.tanh(0.3 * x)


def noise(batch=3):
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def generators(batch, several):
    made = [torch.Generator().manual_seed(5 + k) for k in range(batch if several else 1)]
    return made if several else made[0]


def sampler(solver, step_kwargs, config=None):
    return ak.AdaptiveSampler(
        solver,
        STEPS,
        config or ak.AdaptiveConfig(criterion="never"),
        step_kwargs=step_kwargs,
        progress=False,
    )


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_are_those_of_diffusers_own_loop(name, several):
    make, step_kwargs = SOLVERS[name]
    scheduler, own, used = make(), generators(3, several), generators(3, several)
    scheduler.set_timesteps(STEPS)
    x = noise() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        m = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(m, t, x, generator=own, **step_kwargs).prev_sample
    result = sampler(make(), step_kwargs)(network, noise(), generator=used)
    assert (result.latents - x).abs().max() < 1e-4 * x.abs().max()
    # They stand where the plain loop leaves them, and the next generation goes on from there.
    states = [[g.get_state() for g in (given if several else [given])] for given in (own, used)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_a_generator_is_no_seed():
    solver = SOLVERS["EulerAncestral"][0]
    one = sampler(solver(), {})
    by_generator = [
        one(network, noise(), generator=torch.Generator().manual_seed(s)).latents for s in (3, 3, 4)
    ]
    assert torch.equal(by_generator[0], by_generator[1])
    assert not torch.equal(by_generator[0], by_generator[2])
    assert not torch.equal(by_generator[0], one(network, noise(), seed=3).latents)


def test_the_noise_is_drawn_in_the_networks_dtype():
    """As diffusers draws it, in that of the model output."""
    one = sampler(SOLVERS["EulerAncestral"][0](), {})
    drawn = {
        dtype: one._begin(
            *(torch.nn.Linear(4, 4).to(dtype), noise(), None, 0, None),
            *(torch.Generator().manual_seed(0), None),
        ).inputs.noise
        for dtype in (torch.float32, torch.bfloat16)
    }
    expected = torch.randn(
        3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16
    )
    assert torch.equal(drawn[torch.bfloat16][0].view(3, 2, 4, 4), expected.float())
    assert not torch.equal(*drawn.values())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or a list of 3, got 3"),
        ({"generator": [None] * 3}, TypeError, "generator must be a torch.Generator"),
        ({"generator": generators(2, True)}, ValueError, "one for each of 3 samples, got 2"),
        (
            {"generator": generators(1, False), "seed": 4},
            ValueError,
            "seed must not be given beside generator",
        ),
        (
            {"generator": generators(1, False), "step_noise": torch.zeros(STEPS, 3, 2, 4, 4)},
            ValueError,
            "step_noise must not be given beside generator",
        ),
    ],
)
def test_bad_generators_are_named(options, error, message):
    with pytest.raises(error, match=message):
        sampler(SOLVERS["EulerAncestral"][0](), {})(network, noise(), **options)


def test_a_seed_of_zero_is_none_whatever_its_type():
    one, given = sampler(SOLVERS["EulerAncestral"][0](), {}), torch.Generator
    results = [
        one(network, noise(), generator=given().manual_seed(3), seed=seed).latents
        for seed in (0, np.int64(0))
    ]
    assert torch.equal(*results)


def test_a_table_whose_draws_nobody_knows_is_refused():
    table = problems.table(12, stochastic=True)
    one = ak.AdaptiveSampler(table, config=ak.AdaptiveConfig.paper(), progress=False)
    with pytest.raises(ValueError, match="generator needs a table that was read off a scheduler"):
        one(network, noise(), generator=torch.Generator())


def test_a_brownian_path_is_refused():
    scheduler = diffusers.CosineDPMSolverMultistepScheduler()
    one = sampler(scheduler, {})
    with pytest.raises(ValueError, match="comes from a Brownian path that no generator makes"):
        one(network, noise(), generator=torch.Generator())
