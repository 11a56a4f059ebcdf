"""The host knows every decision before the next call, and reads the device no more than it must."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptive_kernels as ak
from adaptive_kernels.pipelines.generation import active
from adaptive_kernels.rules import precision
from tests.support.pipelines.loop import Sway, loop_pipeline
from tests.support.problems import plan
from tests.support.schedulers import CASE, table_of

STEPS = 20
SOLVERS = ["ddim", "dpm-2m", "heun", "kdpm2", "euler", "unipc-2"]
RULES = {
    "never": {},
    "every(3)": {},
    "third_order": {"threshold": 0.6},
    "released": {"threshold": 0.15},
    "defect": {"threshold": 0.02},
}


def start(batch, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 2, 6, 6, generator=generator)
    # Samples that differ in size decide differently.
    return noise * torch.linspace(1, 0.2, batch)[:, None, None, None]


def watch(pipe, latents, device_asks):
    """Runs the loop; after every step notes what the host and what the device says of the next."""
    said = []

    def edit(pipe, row, latents):
        buffers = active().solver.buffers
        if row + 1 < buffers.decision.rows:
            said.append((buffers.decision.fresh(), device_asks(buffers.state)))
        return latents

    pipe(latents, STEPS, edit=edit)
    return said


def any_waits(state):
    return bool((state.progress[1] == 0).any())


@settings(max_examples=40, deadline=None)
@given(
    solver=st.sampled_from(SOLVERS),
    rule=st.sampled_from(list(RULES)),
    max_skip=st.integers(1, 6),
    batch=st.integers(1, 3),
    granularity=st.sampled_from(["sample", "batch"]),
    noise=st.sampled_from([None, 0.03]),
    seed=st.integers(0, 5),
)
def test_the_host_says_what_the_device_decided(
    solver, rule, max_skip, batch, granularity, noise, seed
):
    """Row by row: any sample that waits, and only that, brings the next call."""
    more = {"output_noise": noise} if rule == "defect" else {}
    config = ak.AdaptiveConfig(
        criterion=rule, max_skip=max_skip, granularity=granularity, **RULES[rule], **more
    )
    pipe = ak.enable_adaptive(loop_pipeline(CASE[solver].make(), Sway()), config)
    said = watch(pipe, start(batch, seed), any_waits)
    assert [host for host, _ in said] == [device for _, device in said]
    sampling = ak.summary(pipe, as_dict=True)["last"]["samplings"][0]
    assert sampling["fresh"] == [True, *(host for host, _ in said)]
    assert pipe.unet.calls == sum(sampling["fresh"])


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_a_plan_is_followed(solver):
    made = plan(table_of(solver, STEPS))
    config = ak.AdaptiveConfig(criterion="plan", plan=made)
    pipe = ak.enable_adaptive(loop_pipeline(CASE[solver].make()), config)
    pipe(start(2, 0), STEPS)
    sampling = ak.summary(pipe, as_dict=True)["last"]["samplings"][0]
    assert sampling["fresh"] == list(made.refresh) and not all(made.refresh)
    assert sampling["reads"] == 0


def test_a_plan_for_other_steps_is_refused_by_name_and_leaves_nothing():
    made = plan(table_of("ddim", STEPS))
    pipe = loop_pipeline(CASE["ddim"].make())
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(criterion="plan", plan=made))
    with pytest.raises(ValueError, match=r"plan must be one for .*, got one for DDIMScheduler"):
        pipe(start(1, 0), STEPS + 1)
    assert active() is None and "step" not in vars(pipe.scheduler)
    pipe(start(1, 0), STEPS)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize("rule", RULES)
def test_the_device_is_read_only_where_it_decides(rule, solver):
    """Never for a fixed pattern, once per refresh for `defect`, else once per open decision."""
    config = ak.AdaptiveConfig(criterion=rule, **RULES[rule])
    pipe = ak.enable_adaptive(loop_pipeline(CASE[solver].make()), config)
    pipe(start(2, 1), STEPS)
    sampling = ak.summary(pipe, as_dict=True)["last"]["samplings"][0]
    stages = 2 if solver == "heun" else 1
    fresh = sampling["fresh"][::stages]
    skipped, open_decisions, reads = 0, 0, sampling["reads"]
    for following in range(1, len(fresh)):
        skipped = 0 if fresh[following - 1] else skipped + 1
        if following >= sampling["rule"]["warmup"]:
            open_decisions += rule == "released" or skipped < config.max_skip
    assert not all(fresh) or rule == "never"
    if rule in ("never", "every(3)"):
        assert reads == 0
    elif rule == "defect":
        assert 0 < reads <= sum(fresh) - sampling["rule"]["warmup"] + 1
    elif rule == "third_order":
        assert reads == open_decisions
    else:
        assert 0 < reads <= open_decisions


def test_a_nan_brings_the_network_back():
    """Whatever the rule thinks of it."""
    for rule in ("third_order", "released", "defect"):
        config = ak.AdaptiveConfig(criterion=rule, threshold=1e6)
        pipe = ak.enable_adaptive(loop_pipeline(CASE["ddim"].make()), config)

        def poison(pipe, row, latents):
            if row == 6:
                latents = latents.clone()
                latents[0, 0, 0, 0] = torch.nan
            return latents

        pipe(start(1, 0), STEPS, edit=poison)
        sampling = ak.summary(pipe, as_dict=True)["last"]["samplings"][0]
        assert not all(sampling["fresh"][:8])
        assert all(sampling["fresh"][12:]), rule


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_noise_of_a_pipelines_network_is_that_of_its_dtype(dtype, cast):
    """Or of autocast, and of its guidance, where it combines two predictions."""
    for guidance, doubled in ((None, 1.0), (3.0, math.hypot(3, 2))):
        pipe = loop_pipeline(CASE["ddim"].make(), Sway().to(dtype))
        if guidance is not None:
            pipe.guidance_scale, pipe.do_classifier_free_guidance = guidance, True
        ak.enable_adaptive(pipe, ak.AdaptiveConfig.recommended())
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            found = watch(pipe, start(2, 0).to(dtype), lambda state: state.output_noise.clone())
        computing = torch.bfloat16 if cast else dtype
        most = precision.ALLOWED * precision.unit_of(computing) * doubled
        assert torch.allclose(found[0][1], torch.full((2,), most))
        (sampling,) = ak.summary(pipe, as_dict=True)["last"]["samplings"]
        assert not [note for note in sampling["notes"] if "guidance scale is not known" in note]


def test_a_guidance_scale_that_is_not_known_is_told():
    for dtype, told in ((torch.bfloat16, 1), (torch.float32, 0)):
        pipe = loop_pipeline(CASE["ddim"].make(), Sway().to(dtype))
        pipe.do_classifier_free_guidance = True
        ak.enable_adaptive(pipe, ak.AdaptiveConfig.recommended())
        watch(pipe, start(1, 0).to(dtype), any_waits)
        (sampling,) = ak.summary(pipe, as_dict=True)["last"]["samplings"]
        notes = [note for note in sampling["notes"] if "guidance scale is not known" in note]
        assert len(notes) == told
