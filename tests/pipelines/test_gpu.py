"""A pipeline on a GPU: the decisions of the CPU, the untouched latents, and no needless wait."""

import pytest
import torch

import adaptive_kernels as ak
from tests.support.pipelines.loop import Sway, loop_pipeline
from tests.support.pipelines.parts import scheduler

pytest.importorskip("diffusers")
pytestmark = pytest.mark.gpu
STEPS = 20
SOLVERS = ["DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"]


def pipeline(name, device="cuda"):
    return loop_pipeline(scheduler(name, clip_sample=False), Sway().to(device))


def run(pipe, device="cuda", **more):
    noise = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    generator = torch.Generator().manual_seed(1)
    more = {"set_timesteps": {"device": device}, "generator": generator, **more}
    return pipe(noise, STEPS, **more)[-1][0].cpu()


@pytest.mark.parametrize("name", SOLVERS)
def test_never_is_the_untouched_pipeline(name):
    pipe = pipeline(name)
    plain = run(pipe)
    with ak.adaptive(pipe, ak.AdaptiveConfig(criterion="never")):
        never = run(pipe)
    assert (never - plain).abs().amax() <= 1e-5 * plain.abs().amax()


@pytest.mark.parametrize("criterion", ["third_order", "released", "defect"])
def test_the_host_learns_what_the_device_decided(criterion):
    """The masks of the CPU: it runs the same arithmetic, on latents that differ by rounding."""
    threshold = {"third_order": 0.6, "released": 0.15, "defect": 0.02}[criterion]
    config = ak.AdaptiveConfig(criterion=criterion, threshold=threshold)
    masks = []
    for device in ("cpu", "cuda"):
        pipe = ak.enable_adaptive(pipeline("DDIMScheduler", device), config)
        run(pipe, device)
        sampling = ak.summary(pipe, as_dict=True)["last"]["samplings"][0]
        masks.append(sampling["fresh"])
        scores = torch.tensor([[s or 0.0 for s in row] for row in sampling["score"]])
        assert ((scores - 1).abs() > 1e-3).all(), "choose another threshold: this one ties"
        assert ak.summary(pipe, as_dict=True)["last"]["seconds_saved"] > 0
        assert pipe.unet.calls == sum(sampling["fresh"]) < STEPS
    assert masks[0] == masks[1]


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_fixed_pattern_never_waits_for_the_device(name):
    """Under torch's own watch from the second step on."""
    pipe = ak.enable_adaptive(pipeline(name), ak.AdaptiveConfig(criterion="every(3)"))

    def edit(pipe, row, latents):
        torch.cuda.set_sync_debug_mode("error" if 0 < row < STEPS - 1 else "default")
        return latents

    try:
        run(pipe, edit=edit)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ak.summary(pipe, as_dict=True)["last"]["samplings"][0]["reads"] == 0
