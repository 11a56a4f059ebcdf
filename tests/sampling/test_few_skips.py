"""Where next to nothing was skipped the sampler says so once, with the reason and what to use."""

import warnings

import diffusers
import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.sampling.skipping import FewSkipsWarning
from tests.support import problems


def network(x, timestep):
    return torch.tanh(0.3 * x) + 0.05 * torch.sin(timestep)[:, None, None, None]


def noise(batch=2):
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def told(sampler, calls=1, **options):
    """The warnings of some samplings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            sampler(network, noise(), **options)
    return [w for w in caught if w.category is FewSkipsWarning]


def sampler(solver=None, steps=20, config=None):
    solver = solver or diffusers.DDIMScheduler(clip_sample=False)
    return ak.AdaptiveSampler(solver, steps, config, progress=False)


TINY = ak.AdaptiveConfig(1e-12)
CASES = {
    "noise": (
        lambda: sampler(diffusers.EulerAncestralDiscreteScheduler(), 30, TINY),
        r"EulerAncestralDiscreteScheduler adds noise .*deterministic kin.*fewer steps",
    ),
    "few": (lambda: sampler(steps=6, config=TINY), r"6 steps stand too far.*recommended\(calls=11"),
    "warm-up": (
        lambda: sampler(steps=3, config=ak.AdaptiveConfig.paper(warmup=3)),
        "the first 3 always call the network; more steps skip more",
    ),
    "threshold": (
        lambda: sampler(config=TINY),
        r"smallest score was .* times the threshold\. A larger threshold .*calibrate\(calls=\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_once_with_the_reason(case):
    make, reason = CASES[case]
    one = make()
    found = told(one, calls=3)
    assert len(found) == 1
    assert found[0].filename == __file__, "the line to look at is the user's"
    with pytest.warns(RuntimeWarning, match=rf"no network call of \d+ was skipped: .*{reason}"):
        make()(network, noise())


def test_next_to_nothing_is_told_too():
    one = sampler(problems.ddim(40), None, ak.AdaptiveConfig(0.003))
    calls = one(network, noise()).nfe.float().mean().item()
    config = ak.AdaptiveConfig(criterion="every(2)")
    assert calls < 0.9 * 40 and not told(one) and not told(sampler(config=config))
    why = ak.sampling.skipping.why_so_few
    assert why(one.config, one.table, 36.1, 2.0).startswith("3.9 of 40 network calls were skipped")
    assert why(one.config, one.table, 35.9, 2.0) is None


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ak.AdaptiveConfig(criterion="never"), {}),
        (ak.AdaptiveConfig(criterion="every(1)"), {}),
        (ak.AdaptiveConfig(0.0), {}),
        (ak.AdaptiveConfig(max_skip=0), {}),
        (ak.AdaptiveConfig(0.1), {"threshold": 0.0}),
        (ak.AdaptiveConfig(0.1), {"threshold": torch.zeros(2)}),
    ],
    ids=str,
)
def test_who_asked_for_every_call_is_not_told(config, options):
    one = sampler(config=config)
    assert not told(one, **options)
    assert (one(network, noise(), **options).nfe == 20).all()


def test_an_engine_tells_it_once_too():
    engine = ak.Engine(
        network, diffusers.EulerAncestralDiscreteScheduler(), 12, shape=(2, 4, 4), config=TINY
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert (
                len(list(engine.run([ak.Request(seed=k) for k in range(3)], progress=False))) == 3
            )
    said = [str(w.message) for w in caught if w.category is FewSkipsWarning]
    assert len(said) == 1 and "no network call of 12 was skipped" in said[0]
