"""A pipeline's steps are its scheduler's: values, kinds, noise, and what is done in between."""

import copy
import inspect
import warnings
from contextlib import nullcontext

import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.pipelines.generation import active
from tests.support.pipelines.loop import Sway, loop_pipeline
from tests.support.schedulers import CASES

NEVER = ak.AdaptiveConfig(criterion="never")
STEPS = 8
EPS = torch.finfo(torch.float32).eps


def noise(batch=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, 8, 8, generator=generator).to(dtype)


def run(pipe, case=None, **arguments):
    """Every step's values, and where the generator stands then."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(5)
    if case is not None:
        arguments = {
            **case.step_kwargs,
            "set_timesteps": case.set_timesteps_kwargs,
            **arguments,
        }
    start = arguments.pop("latents", None)
    results = pipe(noise() if start is None else start, STEPS, generator, **arguments)
    return results, (generator.get_state(), torch.get_rng_state())


def notes(pipe):
    return ak.summary(pipe, as_dict=True)["last"]["samplings"][0]["notes"]


def assert_close(ours, theirs, steps=STEPS):
    """Rounding alone: some terms a step, carried on by a network that hardly grows them."""
    size = theirs.float().abs().amax().clamp(min=1.0)
    assert ours.dtype == theirs.dtype
    assert (ours.float() - theirs.float()).abs().amax() <= 16 * steps * EPS * size


# Those that step themselves in a pipeline, and why.
OWN = {
    "cogvideox-dpm": "given old_pred_original_sample",  # its pipelines hand it its last x0 back
    "unclip": "its own first step and the table's differ",  # no prev_timestep from this one
    "helios": "its step() returns Tensor, ",
    "cosine-dpm": "its noise comes from a path of its own",
}


@pytest.mark.parametrize("return_dict", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_never_gives_what_the_scheduler_gives(case, return_dict):
    """Latents, predicted originals, kinds, visible state and draws, at every step."""
    pipe = loop_pipeline(case.make())
    if return_dict and "return_dict" not in inspect.signature(pipe.scheduler.step).parameters:
        pytest.skip("step() has no return_dict")
    theirs, stood = run(pipe, case, return_dict=return_dict)
    index = getattr(pipe.scheduler, "step_index", None)
    with ak.adaptive(pipe, NEVER), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ours, stand = run(pipe, case, return_dict=return_dict)
        last = ak.summary(pipe, as_dict=True)["last"]
    sampling = last["samplings"][0]
    assert len(last["samplings"]) == 1
    if case.id in OWN:
        assert OWN[case.id] in sampling["notes"][0]
    else:
        assert sampling["notes"] == [] or "adds noise" in sampling["notes"][0]
    assert getattr(pipe.scheduler, "step_index", None) == index
    assert all(torch.equal(a, b) for a, b in zip(stand, stood, strict=True))
    for one, other in zip(ours, theirs, strict=True):
        assert type(one) is type(other) and len(one) == len(other)
        for name in range(len(other)) if isinstance(other, tuple) else other.keys():
            if isinstance(other[name], torch.Tensor):
                assert_close(one[name], other[name])


@torch.no_grad()
def test_unusual_calls_of_step_are_understood():
    """Keywords and places, a class or a tuple, as the scheduler has it."""
    pipe = loop_pipeline(CASES[0].make())
    seen = []
    with ak.adaptive(pipe, NEVER):
        pipe.scheduler.set_timesteps(STEPS)
        x = noise()
        with pipe.progress_bar(total=STEPS):
            for t in pipe.scheduler.timesteps[:3]:
                output = pipe.unet(x, t)[0]
                step = pipe.scheduler.step
                parameters = inspect.signature(step).parameters
                assert list(parameters)[:3] == ["model_output", "timestep", "sample"]
                seen.append(step(sample=x, timestep=t, model_output=output))
                x = seen[-1].prev_sample
    plain = copy.deepcopy(pipe.scheduler)
    assert type(seen[0]) is type(plain.step(output, t, x))
    assert torch.equal(seen[0][0], seen[0].prev_sample) and "pred_original_sample" in seen[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_half_precision_keeps_float32_between_steps(name, dtype):
    """The pipeline's dtype is handed back, and the run stays nearer to float32 than its own."""
    case = next(c for c in CASES if c.scheduler == name)
    exact = run(loop_pipeline(case.make()))[0][-1][0]
    pipe = loop_pipeline(case.make(), Sway().to(dtype))
    start = noise(dtype=dtype)
    theirs = run(pipe, latents=start)[0]
    with ak.adaptive(pipe, NEVER):
        ours = run(pipe, latents=start)[0]
    assert [r[0].dtype for r in ours] == [r[0].dtype for r in theirs]
    error = [(r[-1][0].float() - exact).norm() for r in (ours, theirs)]
    assert error[0] <= 1.02 * error[1]


@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"]
)
def test_noise_is_drawn_in_the_dtype_of_the_scheduler(name):
    """bfloat16 noise is other noise than float32's, from the same generator."""
    case = next(c for c in CASES if c.scheduler == name)
    pipe = loop_pipeline(case.make(), Sway().to(torch.bfloat16))
    start = noise(dtype=torch.bfloat16)
    theirs, stood = run(pipe, latents=start)
    with ak.adaptive(pipe, NEVER), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ours, stand = run(pipe, latents=start)
    assert all(torch.equal(a, b) for a, b in zip(stand, stood, strict=True))
    size = theirs[-1][0].float().abs().amax()
    assert (ours[-1][0].float() - theirs[-1][0].float()).abs().amax() < 0.05 * size


def test_noise_of_everybodys_generator_is_drawn_from_it():
    class Global(type(next(c for c in CASES if c.id == "ddim").make())):
        def step(self, model_output, timestep, sample, generator=None, return_dict=True):
            result = super().step(model_output, timestep, sample, return_dict=False)
            z = torch.randn(sample.shape, dtype=sample.dtype)
            return (result[0] + 0.3 * z, result[1])

    pipe = loop_pipeline(Global(clip_sample=False))
    theirs, stood = run(pipe)
    with ak.adaptive(pipe, NEVER):
        ours, stand = run(pipe)
        assert notes(pipe) == []
    assert all(torch.equal(a, b) for a, b in zip(stand, stood, strict=True))
    assert_close(ours[-1][0], theirs[-1][0])


def hold(pipe, i, latents):
    """Inpainting: one half is put back at every step."""
    latents = latents.clone()
    latents[..., :4] = 0.1 * i
    return latents


def hold_in_place(pipe, i, latents):
    latents[..., :4] = 0.1 * i
    return latents


def reshaped(pipe, i, latents):
    """Other objects of the same values."""
    return latents[None].permute(0, 1, 2, 4, 3).permute(0, 1, 2, 4, 3)[0]


def nudged_once(pipe, i, latents):
    return latents + 0.25 if i == 3 else latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("edit", [hold, hold_in_place, reshaped, nudged_once])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_edits_between_steps_are_taken_in(name, edit, dtype):
    case = next(c for c in CASES if c.scheduler == name)
    pipe = loop_pipeline(case.make(), Sway().to(dtype))
    start = noise(dtype=dtype)
    theirs = run(pipe, latents=start, edit=edit)[0][-1][0]
    with ak.adaptive(pipe, NEVER):
        ours = run(pipe, latents=start, edit=edit)[0][-1][0]
    if dtype == torch.float32:
        assert_close(ours, theirs)
    else:
        size = theirs.float().abs().amax()
        assert (ours.float() - theirs.float()).abs().amax() <= 8 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("edit", [None, reshaped])
def test_untouched_half_precision_latents_are_not_rounded_on_the_way(edit):
    """With a network that gives nothing, what the cast cuts off would be lost for good."""

    class Nothing(torch.nn.Module):
        def forward(self, sample, timestep, **_):
            return (torch.zeros_like(sample),)

    pipe = loop_pipeline(CASES[0].make(), Nothing())
    start = noise(dtype=torch.bfloat16)
    with ak.adaptive(pipe, NEVER):
        ours = run(pipe, latents=start, edit=edit)[0][-1][0]
    table = ak.SolverTable.from_scheduler(pipe.scheduler, STEPS)
    factor = torch.prod(table.A + table.C[:, 0] * table.p)
    assert torch.equal(ours, (start.double() * factor).to(torch.bfloat16))


@pytest.mark.parametrize("criterion", ["third_order", "released", "every(3)", "never"])
def test_a_scheduler_that_is_no_table_steps_itself(criterion):
    """The decision is the rule's on its latents, the output that of the last refresh."""
    case = next(c for c in CASES if c.scheduler == "DDIMScheduler")
    clipped = type(case.make()).from_config({**case.config, "clip_sample": True})
    pipe = loop_pipeline(clipped, Sway())
    threshold = {"third_order": 0.7, "released": 0.3}.get(criterion)
    config = ak.AdaptiveConfig(criterion=criterion, threshold=threshold)
    with ak.adaptive(pipe, config):
        told = nullcontext()
        if criterion != "never":  # which takes nothing from anybody
            told = pytest.warns(RuntimeWarning, match="clip_sample=True")
        with told:
            ours = [r[0] for r in run(pipe, latents=noise(1))[0]]
        assert "clip_sample=True" in notes(pipe)[0]
        fresh = ak.summary(pipe, as_dict=True)["last"]["samplings"][0]["fresh"]
    x, latents, calls, output = noise(1), [noise(1)], [], None
    scheduler = type(clipped).from_config(clipped.config)
    scheduler.set_timesteps(STEPS)
    for i, t in enumerate(scheduler.timesteps):
        calls.append(i < 3 or _asks(config, latents, calls))
        if calls[-1]:
            output = Sway()(x, t)[0].detach()
        x = scheduler.step(output, t, x).prev_sample
        latents.append(x)
    if criterion in ("third_order", "never"):
        assert fresh == ([True] * STEPS if criterion == "never" else calls)
        assert all(torch.equal(a, b) for a, b in zip(ours, latents[1:], strict=True))
    assert (criterion == "never") == all(fresh)


def _asks(config, x, calls):
    if config.criterion != "third_order":
        return True
    left = (x[-1] - 3 * x[-2] + 3 * x[-3] - x[-4]).double().norm()
    limit = not any(calls[-config.max_skip :])
    return limit or not bool(left < config.threshold * (x[-2] - x[-3]).double().norm())


def test_both_stages_of_a_step_that_is_no_table_call_or_neither():
    case = next(c for c in CASES if c.id == "heun")
    pipe = loop_pipeline(type(case.make()).from_config({**case.config, "clip_sample": True}))
    theirs = run(pipe)[0][-1][0]
    with ak.adaptive(pipe, NEVER):
        assert torch.equal(run(pipe)[0][-1][0], theirs)
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(criterion="third_order", threshold=2.0))
    with pytest.warns(RuntimeWarning, match="clip_sample=True"):
        run(pipe)
    fresh = ak.summary(pipe, as_dict=True)["last"]["samplings"][0]["fresh"]
    assert len(fresh) == 2 * STEPS - 1 and not all(fresh)
    assert fresh[:-1:2] == fresh[1::2]


def test_rules_that_need_a_table_refuse_a_scheduler_that_is_none_or_fall_back():
    case = next(c for c in CASES if c.scheduler == "DDIMScheduler")
    clipped = type(case.make()).from_config({**case.config, "clip_sample": True})
    pipe = loop_pipeline(clipped)
    with ak.adaptive(pipe, ak.AdaptiveConfig(criterion="every(2)", fill="linear")):
        with pytest.raises(ak.UnsupportedSchedulerError, match="fill 'linear' needs a scheduler"):
            run(pipe)
        # A failed call leaves nothing behind.
        assert not {"step", "set_timesteps"} & vars(pipe.scheduler).keys()
        assert "forward" not in vars(pipe.unet)
    ak.enable_adaptive(pipe)
    with pytest.warns(RuntimeWarning, match="third_order with reuse in place of defect"):
        run(pipe)
    last = ak.summary(pipe, as_dict=True)["last"]["samplings"][0]
    assert last["rule"]["criterion"] == "third_order" and last["rule"]["fill"] == "reuse"


def test_step_arguments_that_nobody_understands_leave_the_step_to_the_scheduler():
    pipe = loop_pipeline(next(c for c in CASES if c.id == "ddim-eta").make())
    more = {"eta": 1.0, "variance_noise": noise() * 0.5, "generated": False}
    theirs = run(pipe, **more)[0][-1][0]
    with ak.adaptive(pipe, NEVER):
        ours = run(pipe, **more)[0][-1][0]
        assert "variance_noise" in notes(pipe)[0]
    assert torch.equal(ours, theirs)


def test_a_table_that_disagrees_with_the_first_step_is_not_used():
    """The pipeline means something else by the output than the probe did."""
    shape = noise().shape

    class Negated(type(CASES[0].make())):
        def step(self, model_output, timestep, sample, **kwargs):
            # As one that looks at what no probe has: latents of exactly this shape.
            sign = -1 if sample.shape == shape else 1
            return super().step(sign * model_output, timestep, sample, **kwargs)

    pipe = loop_pipeline(Negated.from_config(CASES[0].make().config))
    theirs = run(pipe)[0][-1][0]
    with ak.adaptive(pipe, NEVER):
        ours = run(pipe)[0][-1][0]
        assert "first step and the table" in notes(pipe)[0]
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"]
)
def test_a_later_first_row_is_found(name):
    case = next(c for c in CASES if c.scheduler == name)
    pipe = loop_pipeline(case.make())
    theirs = run(pipe, begin=4)[0]
    with ak.adaptive(pipe, NEVER):
        ours = run(pipe, begin=4)[0]
        assert ak.summary(pipe, as_dict=True)["last"]["samplings"][0]["rows"] == len(theirs)
    assert_close(ours[-1][0], theirs[-1][0])


def test_a_table_is_made_once_and_again_when_the_scheduler_is_another(monkeypatch):
    made = []
    own = ak.SolverTable.from_prepared

    def counted(scheduler, **named):
        made.append(scheduler)
        return own(scheduler, **named)

    monkeypatch.setattr(ak.SolverTable, "from_prepared", counted)
    # Values of its own: other tests have left tables behind.
    pipe = loop_pipeline(type(CASES[0].make())(beta_end=0.0123, clip_sample=False))
    ak.enable_adaptive(pipe, NEVER)
    for steps in (7, 7, 9, 7):
        pipe(noise(), steps)
    assert len(made) == 2
    pipe.scheduler = type(pipe.scheduler)(beta_end=0.0124, clip_sample=False)
    pipe(noise(), 7)
    pipe(noise(), 7, eta=0.5)
    assert len(made) == 4


def test_sigmas_edited_after_set_timesteps_are_the_ones_that_are_stepped():
    """As pipelines do that move a level; the table is read off the scheduler as it stands."""
    case = next(c for c in CASES if c.id == "euler")

    class Edited(type(case.make())):
        def set_timesteps(self, num_inference_steps=None, device=None, **more):
            super().set_timesteps(num_inference_steps, device=device, **more)
            self.sigmas = self.sigmas.clone()
            self.sigmas[-1] = 0.4 * self.sigmas[-2]

    pipe = loop_pipeline(Edited.from_config(case.make().config))
    theirs = run(pipe)[0]
    with ak.adaptive(pipe, NEVER):
        ours = run(pipe)[0]
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one[0], other[0])


@pytest.mark.parametrize("begin", [1, 2, 3])
def test_a_first_timestep_that_comes_twice_is_left_to_the_scheduler(begin):
    """PNDM's second, image-to-image at a strength just below 1: no index tells which it is."""
    case = next(c for c in CASES if c.id == "pndm")
    pipe = loop_pipeline(case.make())
    theirs = run(pipe, begin=begin)[0]
    with ak.adaptive(pipe, NEVER), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ours = run(pipe, begin=begin)[0]
        said = notes(pipe)
    assert any("stands twice in" in note for note in said) == (begin < 3)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one[0], other[0])


def test_a_step_of_the_users_own_is_called_and_left_to_nobody_else():
    """A wrapper put on the scheduler; another pipeline of the same kind knows nothing of it."""
    case = next(c for c in CASES if c.id == "euler")
    pipe, other = loop_pipeline(case.make()), loop_pipeline(case.make())
    plain = run(other)[0]
    own, calls = pipe.scheduler.step, []

    def step(*args, **kwargs):
        calls.append(args)
        result = own(*args, **kwargs)
        return (result[0] * 0.9, *result[1:])

    pipe.scheduler.step = step
    theirs = run(pipe)[0]
    with ak.adaptive(pipe, NEVER):
        calls.clear()
        ours = run(pipe)[0]
        assert "another one than its cl" in notes(pipe)[0]
    assert len(calls) == STEPS and vars(pipe.scheduler)["step"] is step
    assert torch.equal(ours[-1][0], theirs[-1][0])
    with ak.adaptive(other, NEVER):
        never = run(other)[0]
        assert notes(other) == []
    assert_close(never[-1][0], plain[-1][0])


def test_an_argument_that_changes_from_step_to_step_leaves_one_sampling():
    """As UnCLIP's pipelines give prev_timestep."""

    class Told(type(CASES[0].make())):
        def step(self, model_output, timestep, sample, prev_timestep=None, return_dict=True):
            return super().step(model_output, timestep, sample, return_dict=return_dict)

    pipe = loop_pipeline(Told.from_config(CASES[0].make().config))
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(criterion="every(2)"))
    with pytest.warns(RuntimeWarning, match="its step\\(\\) is given prev_timestep"):
        run(pipe, prev_timestep=lambda i: 900 - i)
    (sampling,) = ak.summary(pipe, as_dict=True)["last"]["samplings"]
    assert sampling["fresh"] == [True, False] * (STEPS // 2)


def test_a_solver_whose_numbers_change_begins_anew_and_says_so():
    pipe = loop_pipeline(next(c for c in CASES if c.id == "ddim-eta").make())
    theirs = run(pipe, eta=lambda i: float(i > 3))[0]
    with (
        ak.adaptive(pipe, NEVER),
        pytest.warns(RuntimeWarning, match="anew at its step 4, as"),
    ):
        ours = run(pipe, eta=lambda i: float(i > 3))[0]
    assert_close(ours[-1][0], theirs[-1][0])
    # Also where a skipped step is the one that meets it.
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(criterion="every(5)"))
    with pytest.warns(RuntimeWarning, match="anew at its step 2"):
        run(pipe, eta=lambda i: float(i > 1))
    fresh = [s["fresh"] for s in ak.summary(pipe, as_dict=True)["last"]["samplings"]]
    assert fresh[0] == [True, False] and fresh[1][:2] == [False, True]


def test_a_step_without_names_of_its_own_is_followed():
    class Nameless(type(CASES[0].make())):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    pipe = loop_pipeline(Nameless.from_config(CASES[0].make().config))
    theirs = run(pipe, generated=False)[0]
    with ak.adaptive(pipe, NEVER), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ours = run(pipe, generated=False)[0]
    assert_close(ours[-1][0], theirs[-1][0])


def test_gradients_go_through_every_step():
    pipe = loop_pipeline(CASES[0].make())
    call = type(pipe).__call__.__wrapped__

    def gradient():
        start = noise().requires_grad_()
        call(pipe, start, STEPS)[-1][0].square().sum().backward()
        return start.grad

    plain = gradient()
    ak.enable_adaptive(pipe, ak.AdaptiveConfig(criterion="every(2)"))
    with pytest.warns(RuntimeWarning, match="gradients are asked for"):
        ours = gradient()
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", ["heun", "euler"])
def test_what_a_plain_call_leaves_in_the_scheduler_matters_to_nobody(name):
    """Latents of bfloat16, for one."""
    pipe = loop_pipeline(next(c for c in CASES if c.id == name).make(), Sway().to(torch.bfloat16))
    start = noise(dtype=torch.bfloat16)
    run(pipe, latents=start)
    with ak.adaptive(pipe, NEVER):
        first = run(pipe, latents=start)[0][-1][0]
        assert torch.equal(run(pipe, latents=start)[0][-1][0], first)


def test_float64_pipelines_get_float64_back():
    pipe = loop_pipeline(next(c for c in CASES if c.id == "euler").make(), Sway().double())
    start = noise(dtype=torch.float64)
    theirs = run(pipe, latents=start)[0]
    with ak.adaptive(pipe, NEVER):
        ours = run(pipe, latents=start)[0]
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one[0], other[0])


def test_steps_that_the_device_did_not_do_are_told():
    """Nothing should ever do so; if it does, the latents are not to be trusted."""
    pipe = ak.enable_adaptive(loop_pipeline(CASES[0].make()), NEVER)

    def lose(pipe, row, latents):
        active().solver.buffers.state.progress[0] -= int(row == 4)
        return latents

    with pytest.warns(RuntimeWarning, match="steps were lost on the device"):
        run(pipe, edit=lose)
    assert "steps were lost on the device" in ak.summary(pipe)


def test_a_prepared_table_begins_where_the_schedule_has_rows():
    case = next(c for c in CASES if c.id == "heun")
    scheduler = case.make()
    scheduler.set_timesteps(5)
    whole = ak.SolverTable.from_scheduler(case.make(), 5, begin_index=2)
    assert torch.equal(ak.SolverTable.from_prepared(scheduler, begin_index=2).C, whole.C)
    for index, why in (
        (9, r"in \[0, 8\]"),
        (-1, r"in \[0, 8\]"),
        (3, "a multiple of the 2 stages"),
    ):
        with pytest.raises(ValueError, match=f"begin_index must be .*{why}"):
            ak.SolverTable.from_prepared(scheduler, begin_index=index)
