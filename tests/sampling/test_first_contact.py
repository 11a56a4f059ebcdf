"""What new users type in the wrong place, and what they are told: the argument, and the way out."""

import numpy as np
import pytest
import torch

import adaptive_kernels as ak
from tests.support import problems
from tests.support.networks import Network
from tests.support.schedulers import CASE


def noise(batch=2):
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def ddim():
    return CASE["ddim"].make()


def sampler(*arguments, **options):
    return ak.AdaptiveSampler(ddim(), 6, *arguments, progress=False, **options)


PIPELINE = type(
    "SomePipeline", (), {"components": {}, "scheduler": ddim(), "__call__": lambda self: None}
)()
CASES = {
    "the network in the scheduler's place": (
        lambda: ak.AdaptiveSampler(Network(), ddim(), 6),
        r"got Network, without set_timesteps\(\)|the network Network.*sampler\(model, noise\)",
    ),
    "a threshold for a config": (
        lambda: sampler(0.1),
        r"config must be an AdaptiveConfig, got float; a threshold is .*threshold=0.1\)",
    ),
    "a preset's name for a config": (lambda: sampler("preset"), "got str; load_config reads"),
    "a config's field beside it": (
        lambda: sampler(threshold=0.1),
        r"threshold is a setting of the config: config=AdaptiveConfig\(threshold=",
    ),
    "a dtype by name": (lambda: sampler(dtype="float16"), "torch.bfloat16, got 'float16'"),
    "a pipeline for a network": (
        lambda: sampler()(PIPELINE, noise()),
        r"model must be the network.*pipeline SomePipeline; enable_adaptive\(pipe\)",
    ),
    "a pipeline for an engine's network": (
        lambda: ak.Engine(PIPELINE, ddim(), 6, shape=(2, 4, 4)),
        "model must be the network.*the pipeline SomePipeline",
    ),
    "a generator for a seed": (
        lambda: sampler()(Network(), noise(), seed=torch.Generator()),
        "seed must be ints, got a torch.Generator: generator= takes one",
    ),
    "a number for a path": (lambda: ak.load_config(5), "path must be a str or a path, got int"),
    "a scheduler for a table": (
        lambda: ak.State.begin(ddim(), noise(), ak.AdaptiveConfig()),
        "table must be of type SolverTable, got DDIMScheduler",
    ),
    "NumPy for latents": (
        lambda: ak.State.begin(problems.ddim(6), noise().numpy(), ak.AdaptiveConfig()),
        "latents must be of type Tensor, got ndarray",
    ),
    "no config": (
        lambda: ak.State.begin(problems.ddim(6), noise(), None),
        "config must be of type AdaptiveConfig, got NoneType",
    ),
    "integers for latents": (
        lambda: sampler(strength=0.5)(Network(), noise(), latents=noise().long()),
        "latents must be a floating-point tensor, got torch.int64",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_in_the_wrong_place_is_named(case):
    call, message = CASES[case]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_steps_may_be_a_number_of_numpys():
    table = ak.AdaptiveSampler(ddim(), np.int64(6)).table
    assert table.num_steps == 6 and type(table.num_steps) is int


def test_clean_latents_that_drown_in_noise_are_told():
    """diffusers calls the initial noise latents: here these are an image."""
    with pytest.warns(RuntimeWarning, match=r"share of .*strength= below 1.*goes into noise="):
        sampler()(Network(), noise(), latents=noise())


def test_a_table_of_a_row_more_than_steps_is_not_told(recwarn):
    """PNDM's, whose config was chosen for the steps that were asked for."""
    table = ak.SolverTable.from_scheduler(CASE["pndm"].make(), 10)
    assert table.num_steps == 11
    config = ak.AdaptiveConfig(num_inference_steps=10)
    ak.AdaptiveSampler(table, config=config)
    assert not [w for w in recwarn if "was chosen for" in str(w.message)]
    with pytest.warns(RuntimeWarning, match="config was chosen for 10 steps and runs with 8"):
        ak.AdaptiveSampler(problems.ddim(8), config=config)


def test_a_sampler_says_what_it_is():
    assert repr(sampler()) == (
        "AdaptiveSampler(SolverTable(DDIMScheduler: 6 steps, history 1, stages 1), "
        "criterion 'defect')"
    )
