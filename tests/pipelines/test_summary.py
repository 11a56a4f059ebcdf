"""What was done is told: as text, as a dictionary, as a picture; and what was not, and why."""

import json
import warnings

import pytest
import torch
from PIL import Image

import adaptive_kernels as ak
from adaptive_kernels.pipelines.record import Record
from adaptive_kernels.pipelines.summary import _last
from tests.support.pipelines.cases import CASES
from tests.support.pipelines.loop import Sway, loop_pipeline
from tests.support.schedulers import CASE

SDXL = CASES["sdxl"]


def test_summary_tells_what_was_done():
    pipe = ak.enable_adaptive(SDXL.make(), ak.AdaptiveConfig(criterion="every(3)"))
    SDXL.generate(pipe, steps=7)
    text = ak.summary(pipe)
    first, *rest = text.splitlines()
    assert first == (
        "StableDiffusionXLPipeline, EulerDiscreteScheduler, 1 sample: "
        "3 of 7 steps called the network, 4 skipped it"
    )
    assert "  steps      #..#..#   (# called, . skipped)" in rest
    assert "  unet       3 calls made, 4 skipped" in rest
    assert any(line.startswith("  time") and "with every call" in line for line in rest)
    SDXL.generate(pipe, steps=7, prompt=["a", "b"])
    assert "2 samples" in ak.summary(pipe) and "asked" not in ak.summary(pipe)
    assert "since enabled: 2 generations, 6 calls made, 8 skipped" in ak.summary(pipe)
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(criterion="third_order", threshold=0.01))
    with pytest.warns(RuntimeWarning, match="nothing was skipped"):
        SDXL.generate(pipe, steps=7, prompt=["a", "b"])
    assert "sample 1   asked at 3, 4" in ak.summary(pipe)


def test_as_dict_is_what_json_takes():
    pipe = ak.enable_adaptive(SDXL.make())
    assert json.loads(json.dumps(ak.summary(pipe, as_dict=True)))["last"] is None
    SDXL.generate(pipe, prompt=["a", "b"])
    report = ak.summary(pipe, as_dict=True)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    sampling = report["last"]["samplings"][0]
    assert report["calls"] == {
        "made": sum(sampling["fresh"]),
        "skipped": 14 - sum(sampling["fresh"]),
    }
    assert len(sampling["score"]) == 14 and len(sampling["score"][0]) == 2


def test_the_picture_shows_the_last_call(tmp_path):
    pipe = ak.enable_adaptive(SDXL.make())
    with pytest.raises(ValueError, match="pipe must have been called since it was enabled"):
        ak.decisions_picture(pipe, tmp_path / "none.png")
    SDXL.generate(pipe, prompt=["a", "b"])
    ak.decisions_picture(pipe, tmp_path / "who.png")
    with Image.open(tmp_path / "who.png") as picture:
        assert picture.width > 500


def told(pipe, *arguments, **more):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe(*arguments, **more)
    return [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]


NOISE = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("case", "config", "steps", "reason"),
    [
        ("ddim", {}, 3, "3 steps stand too far from each other"),
        ("ddim", {"threshold": 0.0}, 12, "threshold is 0, and no prediction"),
        (
            "ddim",
            {"threshold": 1e-9},
            12,
            "times the threshold, in the median. A larger threshold skips more",
        ),
        ("ddim", {"max_skip": 0}, 12, "max_skip is 0"),
        ("euler-ancestral", {}, 12, "EulerAncestralDiscreteScheduler adds noise at its"),
    ],
)
def test_a_call_that_skipped_nothing_says_why_once(case, config, steps, reason):
    pipe = loop_pipeline(CASE[case].make())
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(**{"criterion": "defect", **config}))
    messages = told(pipe, NOISE, steps)
    assert len(messages) == 1
    assert messages[0].startswith("LoopPipeline: nothing was skipped: ") and reason in messages[0]
    assert reason in ak.summary(pipe)
    assert ak.summary(pipe, as_dict=True)["last"]["nothing_skipped"] in messages[0]
    assert told(pipe, NOISE, steps) == []


def test_a_call_that_skipped_next_to_nothing_says_so_once():
    pipe = loop_pipeline(CASE["ddim"].make())
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(0.05, max_skip=1, warmup=28))
    messages = told(pipe, NOISE, 30)
    assert len(messages) == 1 and messages[0].startswith("LoopPipeline: 1 of 30 network calls were")
    assert "the first 28 of 30 always call the network" in messages[0]
    assert ak.summary(pipe, as_dict=True)["last"]["few_skipped"] in ak.summary(pipe)
    assert told(pipe, NOISE, 30) == []


def test_a_warning_points_at_the_users_line():
    pipe = ak.enable_adaptive(SDXL.make())
    with pytest.warns(RuntimeWarning, match="nothing was skipped") as caught:
        pipe("a red ball", num_inference_steps=2, output_type="latent")
    assert {w.filename for w in caught if w.category is RuntimeWarning} == {__file__}


def test_a_step_that_nobody_understands_is_left_alone_and_told():
    """Whatever else a scheduler calls its latents."""

    class Other(type(CASE["ddim"].make())):
        def step(self, model_output, timestep, latents, return_dict=True):
            return super().step(model_output, timestep, latents, return_dict=return_dict)

    pipe = loop_pipeline(Other.from_config(CASE["ddim"].make().config))
    plain = pipe(NOISE)[-1][0]
    ak.enable_adaptive(pipe)
    with pytest.warns(RuntimeWarning, match="step.. is called in a way that nobody understands"):
        assert torch.equal(pipe(NOISE)[-1][0], plain)
    assert "in a way that nobody understands" in ak.summary(pipe)


def test_time_saved_is_counted_by_network():
    """Calls of a ControlNet and of a U-Net do not cost the same."""
    record = Record("Pipe", ak.AdaptiveConfig(), ("controlnet", "unet"), seconds=8.0)
    record.made.update(controlnet=2, unet=4)
    record.skipped.update(controlnet=6, unet=1)
    record.network_seconds = {"controlnet": 1.0, "unet": 6.0}
    assert _last(record)["seconds_saved"] == 0.5 * 6 + 1.5 * 1


def test_never_is_not_told_that_nothing_was_skipped():
    pipe = loop_pipeline(CASE["ddim"].make())
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(criterion="never"))
    assert told(pipe, NOISE) == []


def test_a_loop_that_never_steps_and_a_network_that_is_never_called_are_told():
    pipe = ak.enable_adaptive(loop_pipeline(CASE["ddim"].make()))
    with pytest.warns(RuntimeWarning, match=r"the loop never called scheduler\.step"):
        pipe(NOISE, begin=14)
    assert "no step was seen" in ak.summary(pipe)

    pipe.register_modules(other=Sway())
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(criterion="every(2)"), networks=["other"])
    with pytest.warns(RuntimeWarning, match="none of the networks other was called in the loop"):
        pipe(NOISE)


def test_a_summary_asked_for_in_the_middle_says_where_it_stands():
    pipe, said = ak.enable_adaptive(loop_pipeline(CASE["ddim"].make())), []

    def edit(pipe, row, latents):
        said.append(ak.summary(pipe).splitlines()[0])
        return latents

    told(pipe, NOISE, 9, edit=edit)
    assert said[4].endswith("; at step 5 of 9") and said[8].endswith("skipped it")


def test_the_rule_of_the_next_call_is_told_where_it_is_another():
    pipe = ak.enable_adaptive(loop_pipeline(CASE["ddim"].make()))
    with ak.adaptive(pipe, ak.AdaptiveConfig(criterion="every(2)")):
        pipe(NOISE)
        assert "next call" not in ak.summary(pipe)
    assert "next call  defect, threshold auto" in ak.summary(pipe)


def test_auto_is_told_as_the_number_that_it_comes_to():
    pipe = ak.enable_adaptive(loop_pipeline(CASE["ddim"].make()))
    told(pipe, NOISE, 20)
    table = ak.SolverTable.from_scheduler(CASE["ddim"].make(), 20)
    expected = ak.AdaptiveConfig().resolved(table).threshold
    report = ak.summary(pipe, as_dict=True)
    assert report["last"]["samplings"][0]["rule"]["threshold"] == pytest.approx(expected)
    assert report["config"]["threshold"] == "auto"
    assert f"rule       defect, threshold {expected:.3g}, max_skip 4" in ak.summary(pipe)


def test_other_steps_than_the_config_was_chosen_for_are_told():
    config = ak.AdaptiveConfig.recommended(calls=12)
    pipe = ak.enable_adaptive(loop_pipeline(CASE["ddim"].make()), config)
    messages = told(pipe, NOISE, 40)
    assert len(messages) == 1 and "num_inference_steps=100 and runs with 40" in messages[0]
    assert "num_inference_steps=100 and runs with 40" in ak.summary(pipe)
    assert not any("runs with" in message for message in told(pipe, NOISE, 100))


def test_a_failed_call_is_not_told_that_it_skipped_nothing():
    pipe = ak.enable_adaptive(loop_pipeline(CASE["ddim"].make()))

    def fail(*_):
        raise ZeroDivisionError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZeroDivisionError):
            pipe(NOISE, edit=fail)


def test_a_rule_put_in_another_ones_place_is_told():
    """Where noise levels are not known, where the scheduler is no table."""
    pipe = ak.enable_adaptive(loop_pipeline(CASE["pndm-v"].make()))
    messages = told(pipe, NOISE)
    assert "third_order with reuse in place of defect: the noise levels" in messages[0]
    assert "third_order with reuse in place of defect" in ak.summary(pipe)
