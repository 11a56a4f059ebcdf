"""Where next to nothing was skipped the sampler says so once, with the reason and what to use."""

import warnings

import diffusers
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import adaptive_kernels as ak
from adaptive_kernels.sampling.skipping import Calls, FewSkipsWarning, may_be_few, why_so_few
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
        r"scores were .* times the threshold, in the median\. A larger .*calibrate\(calls=\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_once_with_the_reason(case):
    make, reason = CASES[case]
    one = make()
    found = told(one, calls=3)
    assert len(found) == 1
    assert found[0].filename == __file__, "the line to look at is the user's"
    with pytest.warns(RuntimeWarning, match=rf"none of \d+ network calls was skipped: .*{reason}"):
        make()(network, noise())


@given(steps=st.integers(1, 100), batch=st.integers(1, 40), off=st.integers(-2, 2))
@example(steps=13, batch=10, off=0)
def test_a_glance_at_the_calls_leaves_nothing_out(steps, batch, off):
    """Who skipped too little by the count of each is looked at, down to the last call."""
    table = problems.table(steps)
    total = min(max(round(0.9 * steps * batch) + off, 0), steps * batch)
    whole, rest = divmod(total, batch)
    nfe = torch.tensor([whole + (b < rest) for b in range(batch)], dtype=torch.int32)
    run = Calls(steps * batch, total)
    told = why_so_few(ak.AdaptiveConfig.paper(), table, run) is not None
    assert may_be_few(nfe, table) == told


def test_next_to_nothing_is_told_too():
    one = sampler(problems.ddim(40), None, ak.AdaptiveConfig(0.003))
    calls = one(network, noise()).nfe.float().mean().item()
    config = ak.AdaptiveConfig(criterion="every(2)")
    assert calls < 0.9 * 40 and not told(one) and not told(sampler(config=config))
    said = why_so_few(one.config, one.table, Calls(400, 361, torch.tensor([0.1, 2.0, 3.0])))
    assert said.startswith("39 of 400 network calls were skipped: ") and "were 2 times" in said
    assert why_so_few(one.config, one.table, Calls(400, 359)) is None
    # A score that was within the threshold is no reason.
    said = why_so_few(one.config, one.table, Calls(400, 361, torch.tensor([0.2, 0.5, 7.0])))
    assert "most steps were within the threshold, but max_skip is 4" in said


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
    assert len(said) == 1 and "none of 36 network calls was skipped" in said[0]


def requested(engine, *requests):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = list(engine.run(requests, progress=False))
    said = [str(w.message) for w in caught if w.category is FewSkipsWarning]
    return results, said


def test_of_an_engines_requests_those_count_that_want_skips():
    def engine(config):
        solver = diffusers.DDIMScheduler(clip_sample=False)
        return ak.Engine(network, solver, 20, shape=(2, 4, 4), config=config)

    results, said = requested(
        engine(ak.AdaptiveConfig(0.1)), ak.Request(threshold=0.0), ak.Request(threshold=0.0)
    )
    assert [sample.nfe for sample in results] == [20, 20] and not said
    # A part of the steps is all that image to image runs.
    image = {"latents": noise(1)[0], "strength": 0.6}
    results, said = requested(engine(TINY), ak.Request(seed=0, **image))
    assert results[0].nfe == 12 and "none of 12 network calls was skipped" in said[0]


def test_image_to_image_is_not_taken_for_few_steps():
    """Of 50 steps the last eight stand as near to each other as all of them."""
    solver = diffusers.DDIMScheduler(clip_sample=False)
    one = ak.AdaptiveSampler(solver, 50, TINY, strength=0.16, progress=False)
    (said,) = told(one, latents=noise())
    assert "stand too far" not in str(said.message) and "larger threshold" in str(said.message)


def test_of_nan_its_own_warning_is_enough():
    def broken(info):
        return info.latents() * torch.nan

    with pytest.warns(RuntimeWarning, match="hold NaN or Inf"):
        assert not told_all(sampler(steps=12, config=ak.AdaptiveConfig(0.1)), broken)


def told_all(one, callback):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one(network, noise(), callback=callback)
    for w in caught:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return [w for w in caught if w.category is FewSkipsWarning]
