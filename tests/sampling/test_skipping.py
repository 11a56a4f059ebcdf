"""Skipping end to end: a scheduler's own loop, fed cached outputs where the sampler skipped."""

import pytest
import torch

import adaptive_kernels as ak
from tests.support.decisions import official, paper
from tests.support.schedulers import CASES, loop, prepare

STEPS = 20
CONFIGS = [
    ak.AdaptiveConfig.paper(threshold=0.5, max_skip=3),
    ak.AdaptiveConfig(0.3, 3, "released"),
    ak.AdaptiveConfig(criterion="every(3)"),
]


def network(model_input, timestep):
    t = torch.as_tensor(timestep).double().reshape(-1)[0]
    return torch.tanh(0.3 * model_input.double() + 0.5 + t / 2000).to(model_input.dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_skipped_steps_are_the_schedulers_own_on_the_cached_output(case):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1, 8, 6, generator=generator)
    for config in CONFIGS:
        scheduler, timesteps = prepare(case, STEPS)
        rows = len(timesteps)
        z = torch.randn(rows, 1, 1, 8, 6, generator=generator)
        sampler = ak.AdaptiveSampler(case.make(), STEPS, config, **case.kwargs)
        # Inversion starts from an image.
        image = x if sampler.table.needs_latents else None
        result = sampler(network, x, latents=image, step_noise=z, progress=False)
        refreshed = result.refreshed[:, 0].tolist()

        calls = iter(refreshed)
        cache = []

        def cached(model_input, timestep, calls=calls, cache=cache):
            if next(calls):
                cache[:] = [network(model_input, timestep)]
            return cache[0]

        start = (x * sampler.table.init_noise_sigma).double()
        path = loop(scheduler, timesteps, cached, start, z.double(), case.step_kwargs)
        scale = path[-1].abs().max()
        # Each of up to 39 rows adds (K + 8) EPS of its terms (problems.update_bound), and terms
        # stay below ten times the result: 39 * 13 * 10 * 2^-24 = 3e-4 at worst.
        assert (path[-1].double() - result.latents).abs().max() <= 2e-4 * scale

        stages = sampler.table.stages
        whole = refreshed[::stages]
        assert all(refreshed[i] == refreshed[i - 1] for i in range(1, rows, 2)) or stages == 1
        near = bool(((result.score - 1).abs() < 2e-3).any())
        if config.criterion.startswith("every") or near:
            continue
        latents = [p.double() for p in path[::stages]]
        latents += [path[-1].double()] * (len(whole) + 1 - len(latents))
        rule = official if config.criterion == "released" else paper
        limits = (config.threshold, config.max_skip) + (() if rule is official else (3,))
        assert whole == rule(latents, *limits)[: len(whole)]


def test_the_cases_do_skip():
    """The test above would say nothing of a sampler that never skips."""
    skipped = 0
    for case in CASES:
        sampler = ak.AdaptiveSampler(case.make(), STEPS, CONFIGS[0], **case.kwargs)
        x = torch.ones(1, 1, 2, 2)
        image = x if sampler.table.needs_latents else None
        result = sampler(network, x, latents=image, progress=False)
        skipped += int((~result.refreshed).sum())
    assert skipped > 5 * len(CASES)
