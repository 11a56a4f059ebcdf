"""Every pipeline: untouched under `never`, the authors' decisions under `released`, repeatable."""

import warnings

import pytest
import torch

import adaptive_kernels as ak
from tests.support.authors import Authors, tied
from tests.support.pipelines.cases import CASES, STEPS
from tests.support.pipelines.parts import scheduler

SKIPPING = ak.AdaptiveConfig(criterion="third_order", threshold=2.0)
EPS = torch.finfo(torch.float32).eps


def last(pipe):
    return ak.summary(pipe, as_dict=True)["last"]


@pytest.mark.filterwarnings("ignore:.*no table:RuntimeWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_is_untouched_under_never_and_skips_otherwise(name):
    """Every network is called or skipped as often as steps were done, and a call repeats itself."""
    case = CASES[name]
    pipe = case.make()
    plain = case.generate(pipe)
    with ak.adaptive(pipe, ak.AdaptiveConfig(criterion="never")):
        never = case.generate(pipe)
        calls = last(pipe)["networks"]
    size = plain.abs().amax()
    assert (never - plain).abs().amax() <= 32 * STEPS * EPS * size
    assert calls.keys() == set(case.networks)

    ak.enable_adaptive(pipe, SKIPPING)
    first, report = case.generate(pipe), last(pipe)
    sampling = report["samplings"][0]
    assert len(report["samplings"]) == 1 and sampling["samples"] == 1
    for network, counts in report["networks"].items():
        assert counts["skipped"] > 0
        assert counts["made"] + counts["skipped"] == calls[network]["made"]
    assert sampling["done"] == calls[case.networks[-1]]["made"]
    assert torch.isfinite(first).all() and not torch.equal(first, plain)
    assert torch.equal(case.generate(pipe), first)
    ak.disable_adaptive(pipe)
    assert torch.equal(case.generate(pipe), plain)


SOLVERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
}
# Of each pipeline a threshold at which it skips some steps and calls at others.
AUTHORS = {"sd15": 0.05, "sdxl": 0.05, "ldm": 0.03, "i2vgen-xl": 0.02, "text-to-video": 0.02}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", AUTHORS)
def test_released_decides_as_its_authors_code(name, solver):
    """The same steps call the network, and the latents are those of that mask."""
    case, threshold = CASES[name], AUTHORS[name]
    kind, config = SOLVERS[solver]
    pipe = case.make(solver=scheduler(kind, **config))
    with Authors(pipe, threshold, max_skip=4) as rule:
        theirs = case.generate(pipe, steps=24)
    assert 4 < sum(rule.called) < 24
    assert not tied(rule), "choose another threshold: rounding may turn a decision"
    released = ak.AdaptiveConfig(
        criterion="released", threshold=threshold, max_skip=4, granularity="batch"
    )
    with ak.adaptive(pipe, released):
        ours = case.generate(pipe, steps=24)
        assert last(pipe)["samplings"][0]["fresh"] == rule.called
    assert (ours - theirs).abs().amax() <= 32 * 24 * EPS * theirs.abs().amax()


def test_a_batch_decides_together():
    """When any sample asks, all take the new output; alone they would decide otherwise."""
    case = CASES["sdxl"]
    pipe = ak.enable_adaptive(case.make(), ak.AdaptiveConfig(0.0016))
    prompts = ["a red ball", "zzz ~~~ ###", "blue"]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    together = case.generate(pipe, steps=24, prompt=prompts, generator=generators)
    sampling = last(pipe)["samplings"][0]
    assert sampling["samples"] == 3 and len(together) == 3
    warmup = sampling["rule"]["warmup"]
    asked = set().union(*sampling["asked"])
    limit = sampling["rule"]["max_skip"]
    fresh = [row for row, called in enumerate(sampling["fresh"]) if called]
    for row in fresh[warmup:]:
        forced = not any(sampling["fresh"][row - limit : row])
        assert row in asked or forced
    assert asked <= set(fresh)
    alone = []
    for seed, prompt in enumerate(prompts):
        case.generate(pipe, steps=24, seed=seed, prompt=prompt)
        alone.append(last(pipe)["samplings"][0]["fresh"])
    assert any(mask != sampling["fresh"] for mask in alone)


def test_images_of_one_prompt_are_samples_of_their_own():
    case = CASES["sd15"]
    pipe = ak.enable_adaptive(case.make(), SKIPPING)
    case.generate(pipe, num_images_per_prompt=3)
    assert last(pipe)["samplings"][0]["samples"] == 3


@pytest.mark.parametrize("name", ["i2vgen-xl", "text-to-video"])
def test_frames_are_rows_of_one_sample(name):
    """Two videos, whose frames a pipeline flattens into rows around `step`."""
    case = CASES[name]
    pipe = ak.enable_adaptive(case.make(), SKIPPING)
    more = {"num_videos_per_prompt": 2}
    if name == "text-to-video":
        more = {"prompt": ["a red ball", "blue"]}
    case.generate(pipe, steps=4, **more)
    assert last(pipe)["samplings"][0]["samples"] == 2


def test_images_are_equal_to_the_last_bit_under_never():
    """What a user sees: 8-bit images."""
    case = CASES["sdxl"]
    pipe = case.make()
    plain = case.generate(pipe, output_type="np")
    with ak.adaptive(pipe, ak.AdaptiveConfig(criterion="never")):
        never = case.generate(pipe, output_type="np")
    assert torch.equal((plain * 255).round(), (never * 255).round())


def test_nothing_is_warned_of_where_all_goes_well():
    case = CASES["sdxl"]
    pipe = ak.enable_adaptive(case.make())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        case.generate(pipe, steps=30)
