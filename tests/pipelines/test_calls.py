"""Whose call of a network it is, and what it gets: the loop alone is served at a skipped step."""

import warnings
from typing import ClassVar

import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.pipelines.generation import active
from tests.support.pipelines.cases import CASES
from tests.support.pipelines.loop import Sway, base, loop_pipeline
from tests.support.pipelines.parts import quiet
from tests.support.schedulers import CASE

EVERY = ak.AdaptiveConfig(criterion="every(3)")
NEVER = ak.AdaptiveConfig(criterion="never")
NOISE = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def sampling(pipe):
    return ak.summary(pipe, as_dict=True)["last"]["samplings"][-1]


def test_a_callback_that_calls_the_network_gets_its_answer():
    """At steps before a skip too; and the loop goes on as if it had not."""
    case = CASES["sd15"]
    pipe = ak.enable_adaptive(case.make(), EVERY)
    expected, asked = case.generate(pipe), []

    def callback(pipe, i, t, kwargs):
        given = torch.full((2, 4, 16, 16), float(i)), 7, torch.ones(2, 4, 32)
        asked.append((pipe.unet(*given).sample, type(pipe.unet).forward(pipe.unet, *given).sample))
        return kwargs

    assert torch.equal(case.generate(pipe, callback_on_step_end=callback), expected)
    assert all(torch.equal(*pair) for pair in asked) and len(asked) == 15
    assert ak.summary(pipe, as_dict=True)["last"]["networks"]["unet"] == {"made": 5, "skipped": 10}


def test_a_callback_may_run_another_pipeline_of_the_same_network():
    """Plain, for a preview; and enabled, with decisions of its own."""
    from diffusers import StableDiffusionPipeline

    case = CASES["sd15"]
    pipe = case.make()
    own = type(pipe.scheduler).from_config(pipe.scheduler.config)
    preview = quiet(
        StableDiffusionPipeline(
            **{**pipe.components, "scheduler": own}, requires_safety_checker=False
        )
    )
    alone = case.generate(preview, steps=4)
    ak.enable_adaptive(pipe, EVERY)
    expected, seen = case.generate(pipe), []

    def callback(pipe, i, t, kwargs):
        if i in (3, 4, 5):
            seen.append(case.generate(preview, steps=4))
        return kwargs

    assert torch.equal(case.generate(pipe, callback_on_step_end=callback), expected)
    assert all(torch.equal(image, alone) for image in seen) and len(seen) == 3
    ak.enable_adaptive(preview, EVERY)
    seen.clear()
    assert torch.equal(case.generate(pipe, callback_on_step_end=callback), expected)
    assert len(seen) == 3 and not sampling(preview)["fresh"][1]


def test_a_pipeline_that_writes_into_an_output_gets_one_that_is_whole():
    """It costs the first skip, as nobody could have known; from then on all is as if it did not."""
    pipe = loop_pipeline(CASE["ddim"].make())
    own = pipe.scheduler.step

    def run(in_place):
        def step(output, *args, **kwargs):
            # The pipeline's own arithmetic, which it may do in place.
            return own(output.mul_(1.5) if in_place else output * 1.5, *args, **kwargs)

        pipe.scheduler.step = step
        return pipe(NOISE)[-1][0]

    assert torch.equal(run(True), run(False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with ak.adaptive(pipe, ak.AdaptiveConfig(criterion="every(4)")):
            in_place, fresh = run(True), sampling(pipe)["fresh"]
        with ak.adaptive(pipe, ak.AdaptiveConfig(criterion="every(4)", warmup=2)):
            careful = run(False)
            assert sampling(pipe)["fresh"] == fresh == [i in (0, 1, 5, 9, 13) for i in range(14)]
    assert torch.equal(in_place, careful)


def interval_pipeline(guided):
    """A pipeline that calls its network twice at the guided steps, and once at the others."""

    class IntervalPipeline(base()):
        asked: ClassVar[list] = []

        @torch.no_grad()
        def __call__(self, x):
            self.asked.clear()
            self.scheduler.set_timesteps(12)
            with self.progress_bar(total=12):
                for i, t in enumerate(self.scheduler.timesteps):
                    output = self.unet(x, t)[0]
                    if i in guided:
                        other = self.unet(-x, t)[0]
                        self.asked.append((i, other))
                        output = output + 0.5 * (output - other)
                    x = self.scheduler.step(output, t, x, return_dict=False)[0]
            return x

    return quiet(IntervalPipeline(Sway(), CASE["ddim"].make()))


def test_an_output_of_an_earlier_refresh_is_not_served():
    """Guidance that stops and starts again: the second call is made, the next step refreshes."""
    pipe = interval_pipeline({0, 1, 7, 8, 9})
    plain = pipe(NOISE)
    with ak.adaptive(pipe, NEVER):
        assert (pipe(NOISE) - plain).abs().max() < 1e-5 * plain.abs().max()
    with ak.adaptive(pipe, EVERY):
        pipe(NOISE)
        fresh = sampling(pipe)["fresh"]
    # Refreshes at 0, 3, 6; at 7 the second call has nothing of that refresh.
    assert fresh[:9] == [True, False, False, True, False, False, True, False, True]
    outputs = dict(pipe.asked)
    assert torch.equal(outputs[1], outputs[0]) and not torch.equal(outputs[7], outputs[1])


def test_one_changed_argument_makes_all_calls_of_a_step_anew():
    """Conditional and unconditional half in two calls, and another prompt for the first."""

    class TwoCalls(base()):
        @torch.no_grad()
        def __call__(self, x, change):
            self.scheduler.set_timesteps(12)
            prompt, empty = torch.ones(1), torch.zeros(1)
            with self.progress_bar(total=12):
                for i, t in enumerate(self.scheduler.timesteps):
                    prompt = torch.ones(1) if i == change else prompt
                    output = self.unet(x, t, text=prompt)[0]
                    output = output + 0.5 * (output - self.unet(x, t, text=empty)[0])
                    x = self.scheduler.step(output, t, x, return_dict=False)[0]
            return x

    pipe = quiet(TwoCalls(Sway(), CASE["ddim"].make()))
    ak.enable_adaptive(pipe, EVERY)
    pipe(NOISE, change=7)
    networks = ak.summary(pipe, as_dict=True)["last"]["networks"]["unet"]
    assert sampling(pipe)["fresh"] == [i in (0, 3, 6, 7, 10) for i in range(12)]
    assert networks == {"made": 10, "skipped": 14}


def test_bars_within_a_bar_are_one_generation():
    """As Marigold's, one bar over the images of a call and one over the steps of each."""

    class Nested(base()):
        @torch.no_grad()
        def __call__(self, images):
            results = []
            for x in self.progress_bar(images):
                self.scheduler.set_timesteps(9)
                for t in self.progress_bar(self.scheduler.timesteps):
                    x = self.scheduler.step(self.unet(x, t)[0], t, x).prev_sample
                results.append(x)
                # After a loop's end the network is everybody's.
                assert torch.equal(self.unet(x, 5)[0], Sway.forward(self.unet, x, 5)[0])
            return results

    pipe = quiet(Nested(Sway(), CASE["ddim"].make()))
    ak.enable_adaptive(pipe, EVERY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        results = pipe([NOISE, NOISE, NOISE])
    assert torch.equal(results[0], results[2])
    report = ak.summary(pipe, as_dict=True)
    assert report["generations"] == 1 and len(report["last"]["samplings"]) == 3
    assert report["calls"] == {"made": 9 + 3, "skipped": 18}
    assert active() is None


def test_free_init_samples_anew_each_time():
    case = CASES["animatediff"]
    pipe = case.make()
    pipe.enable_free_init(num_iters=2, use_fast_sampling=False)
    plain = case.generate(pipe, steps=8)
    with ak.adaptive(pipe, NEVER):
        never = case.generate(pipe, steps=8)
    assert (never - plain).abs().max() < 1e-4 * plain.abs().max()
    with ak.adaptive(pipe, EVERY):
        case.generate(pipe, steps=8)
        assert ak.summary(pipe, as_dict=True)["calls"] == {"made": 6, "skipped": 10}


def test_a_bar_that_is_no_context_of_the_loop_is_told():
    class Loose(base()):
        @torch.no_grad()
        def __call__(self, x):
            self.scheduler.set_timesteps(9)
            bar = self.progress_bar(total=9)
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(self.unet(x, t)[0], t, x).prev_sample
                bar.update()
            return x

    pipe = quiet(Loose(Sway(), CASE["ddim"].make()))
    plain = pipe(NOISE)
    ak.enable_adaptive(pipe, EVERY)
    with pytest.warns(RuntimeWarning, match="its progress bar is no context of its loop"):
        assert torch.equal(pipe(NOISE), plain)
    assert "its progress bar is no context of its loop" in ak.summary(pipe)


def test_warnings_as_errors_leave_nothing_open():
    pipe = ak.enable_adaptive(loop_pipeline(CASE["ddim"].make()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeWarning, match="nothing was skipped"):
            pipe(NOISE, 3)
    assert active() is None and "step" not in vars(pipe.scheduler)


def test_latents_of_a_generation_are_let_go():
    pipe = ak.enable_adaptive(loop_pipeline(CASE["euler-ancestral"].make()), EVERY)
    pipe(NOISE)
    held = vars(pipe)["progress_bar"].last.samplings[0]
    assert held.buffers is None and held.score().shape == (14, 1)


class Elsewhere:
    """A loop whose bar is opened by one function and stepped by another."""

    def __init__(self, pipe):
        self.pipe, self.x = pipe, NOISE

    def open(self):
        self.pipe.scheduler.set_timesteps(9)
        self.bar = self.pipe.progress_bar(total=9)
        self.bar.__enter__()

    def call(self, t):
        self.x = self.pipe.scheduler.step(self.pipe.unet(self.x, t)[0], t, self.x).prev_sample


def nested(depth, call, *arguments):
    """Frames between a caller and its call, at whatever addresses."""
    return nested(depth - 1, call, *arguments) if depth else call(*arguments)


@torch.no_grad()
def test_a_bar_opened_by_another_function_serves_the_loop():
    loop = Elsewhere(ak.enable_adaptive(loop_pipeline(CASE["ddim"].make()), EVERY))
    loop.open()
    for k, t in enumerate(loop.pipe.scheduler.timesteps):
        nested(k, loop.call, t)
    loop.bar.__exit__(None, None, None)
    assert sampling(loop.pipe)["fresh"] == [True, False, False] * 3
