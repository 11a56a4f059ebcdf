"""The sampler: equal to the scheduler's own loop, per sample, and clear about bad input."""

import threading
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
)

import adaptive_kernels as ak

NEVER = ak.AdaptiveConfig(criterion="never")
SHAPE = (3, 2, 5, 7)


class Open(DDIMScheduler):
    """Takes anything, as some custom schedulers do."""

    def set_timesteps(self, *arguments, **named):
        self.named = {k: v for k, v in named.items() if k != "device"}
        super().set_timesteps(*arguments)


def ddim(**kwargs):
    return DDIMScheduler(clip_sample=False, **kwargs)


def toy(model_input, timestep, shift=None):
    """A smooth network that works row by row, so a row does not depend on its neighbours."""
    t = (timestep.to(model_input.dtype) / 1000).view(-1, *[1] * (model_input.dim() - 1))
    out = torch.tanh(model_input * (0.5 + 0.4 * t)) * (1 + t)
    return out if shift is None else out + shift.view(t.shape).to(out.dtype)


def noise(batch=3, seed=0):
    return torch.randn((batch, *SHAPE[1:]), generator=torch.Generator().manual_seed(seed))


def sample(scheduler=None, config=NEVER, steps=20, model=toy, x=None, **call):
    sampler = ak.AdaptiveSampler(scheduler or ddim(), steps, config)
    return sampler(model, noise() if x is None else x, progress=False, **call)


def schedulers_loop(scheduler, steps, x, dtype):
    scheduler.set_timesteps(steps)
    x = (x.to(dtype) * getattr(scheduler, "init_noise_sigma", 1.0)).to(dtype)
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = toy(fed.to(dtype), t.expand(len(x)))
        x = scheduler.step(out, t, x, return_dict=False)[0].to(dtype)
    return x


@pytest.mark.parametrize(
    "make",
    [
        ddim,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=["ddim", "2m", "euler", "flow"],
)
def test_never_skipping_is_the_schedulers_own_loop(make):
    """As near to the loop in float64 as diffusers' own float32 loop is, within a factor of 4."""
    exact = schedulers_loop(make(), 20, noise(), torch.float64)
    theirs = schedulers_loop(make(), 20, noise(), torch.float32)
    ours = sample(make())
    unit = exact.abs().max() * 2.0**-24
    own_error = (theirs - exact).abs().max()
    assert (ours.latents - exact).abs().max() <= 4 * own_error + 8 * unit
    assert ours.nfe.tolist() == [20, 20, 20]
    assert bool(ours.refreshed.all())


def test_a_config_that_was_chosen_for_some_steps_brings_them(recwarn):
    config = ak.AdaptiveConfig.recommended(calls=12)
    sampler = ak.AdaptiveSampler(ddim(), config=config)
    assert sampler.table.num_steps == config.num_inference_steps == 100
    assert ak.AdaptiveSampler(ddim(), config=config, strength=0.5).table.num_steps == 50
    assert ak.AdaptiveSampler(ddim(), 100, config).table.num_steps == 100
    assert not recwarn.list
    few = ak.SolverTable.from_scheduler(ddim(), 20)
    for given in ((ddim(), 20), (few, None)):
        with pytest.warns(RuntimeWarning, match="chosen for 100 steps and runs with 20"):
            assert ak.AdaptiveSampler(*given, config).table.num_steps == 20
    result = sampler(toy, noise(), progress=False)
    assert (result.nfe < 25).all()


def test_the_default_is_the_recommended_rule_and_says_what_else_there_is():
    assert ak.AdaptiveSampler(ddim(), 20).config == ak.AdaptiveConfig.recommended()
    state = ak.AdaptiveSampler(ddim(), 20).begin(toy, noise())
    table = ak.SolverTable.from_scheduler(ddim(), 20)
    expected = ak.AdaptiveConfig().resolved(table).threshold
    assert state.threshold.tolist() == pytest.approx([expected] * 3)
    with pytest.raises(ValueError, match=r"noise levels are not known.*AdaptiveConfig.paper\(\)"):
        ak.AdaptiveSampler(IPNDMScheduler(), 10)
    assert ak.AdaptiveSampler(IPNDMScheduler(), 10, ak.AdaptiveConfig.paper())


def test_threshold_zero_is_the_full_run_bit_for_bit():
    full = sample()
    for criterion in ("third_order", "released"):
        zero = sample(config=ak.AdaptiveConfig(0.0, 4, criterion))
        assert torch.equal(full.latents, zero.latents)
        assert zero.nfe.tolist() == [20, 20, 20]


def test_a_sample_is_the_same_alone_and_in_any_batch():
    config = ak.AdaptiveConfig.paper(threshold=0.3)
    x = noise(6) * torch.tensor([0.2, 0.5, 1.0, 1.0, 2.0, 4.0]).view(-1, 1, 1, 1)
    together = sample(config=config, x=x, steps=40)
    assert len(set(together.nfe.tolist())) > 1, "samples must differ for this test to say anything"
    for b in range(6):
        alone = sample(config=config, x=x[b : b + 1], steps=40)
        assert torch.equal(alone.refreshed[:, 0], together.refreshed[:, b])
        assert torch.equal(alone.latents[0], together.latents[b])


def test_skipping_calls_the_network_on_unfinished_rows_only():
    seen = []

    def counting(model_input, timestep, **conditioning):
        seen.append(len(model_input))
        return toy(model_input, timestep)

    x = noise(6) * torch.tensor([0.2, 0.5, 1.0, 1.0, 2.0, 4.0]).view(-1, 1, 1, 1)
    result = sample(config=ak.AdaptiveConfig.paper(threshold=0.3), x=x, steps=40, model=counting)
    assert sum(seen) == int(result.nfe.sum()) < 6 * 40
    assert len(seen) == int(result.nfe.max())
    assert torch.equal(result.nfe, result.refreshed.sum(0).int())
    seen.clear()
    every_row = sample(
        config=ak.AdaptiveConfig.paper(threshold=0.3), x=x, steps=40, model=counting, gather=False
    )
    assert set(seen) == {6}
    assert torch.equal(every_row.latents, result.latents)


def test_guidance_stacks_unconditional_rows_first():
    scale = torch.tensor([1.5, 2.0, 3.0])
    conditional = {"shift": torch.tensor([0.1, 0.2, 0.3])}
    unconditional = {"shift": torch.tensor([-0.1, -0.2, -0.3])}

    def by_hand(x):
        scheduler = ddim()
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps:
            mu, mc = (toy(x, t.expand(3), c["shift"]) for c in (unconditional, conditional))
            m = mu + scale.view(-1, 1, 1, 1) * (mc - mu)
            x = scheduler.step(m, t, x, return_dict=False)[0]
        return x

    sampler = ak.AdaptiveSampler(ddim(), 10, NEVER, guidance_scale=scale)
    result = sampler(toy, noise(), conditional, unconditional, progress=False)
    assert torch.allclose(result.latents, by_hand(noise()), rtol=0, atol=1e-4)
    other_way = sampler(toy, noise(), unconditional, conditional, progress=False)
    assert not torch.allclose(result.latents, other_way.latents, rtol=0, atol=1e-2)
    # Gathered rows keep their conditioning: alone and together agree.
    adaptive = ak.AdaptiveSampler(
        ddim(), 30, ak.AdaptiveConfig.paper(threshold=0.3), guidance_scale=2.0
    )
    x = noise() * torch.tensor([0.2, 1.0, 4.0]).view(-1, 1, 1, 1)
    together = adaptive(toy, x, conditional, unconditional, progress=False)
    assert len(set(together.nfe.tolist())) > 1
    for b in range(3):
        alone = adaptive(
            toy,
            x[b : b + 1],
            {"shift": conditional["shift"][b : b + 1]},
            {"shift": unconditional["shift"][b : b + 1]},
            progress=False,
        )
        assert torch.equal(alone.latents[0], together.latents[b])


def test_guidance_halves_are_matched_by_name_not_by_order():
    def model(model_input, timestep, a, b):
        return toy(model_input, timestep, a - 2 * b)

    x, zeros, ones = noise(), torch.zeros(3), torch.ones(3)
    sampler = ak.AdaptiveSampler(ddim(), 5, NEVER, guidance_scale=2.0)
    one = sampler(model, x, {"a": ones, "b": zeros}, {"a": zeros, "b": ones}, progress=False)
    two = sampler(model, x, {"a": ones, "b": zeros}, {"b": ones, "a": zeros}, progress=False)
    assert torch.equal(one.latents, two.latents)


@pytest.mark.parametrize(
    ("unconditional", "message"),
    [
        (
            {"shift": torch.zeros(3, 2)},
            r"unconditional\['shift'\] must have the shape and dtype of "
            r"conditioning\['shift'\], \(3,\) torch.float32, got \(3, 2\)",
        ),
        ({"shift": None}, r"unconditional\['shift'\] must equal .* got None and a tensor \(3,\)"),
        ({"shift": torch.zeros(3), "x": 1}, r"conditioning has no \['x'\]"),
    ],
)
def test_guidance_halves_that_cannot_be_stacked_are_refused(unconditional, message):
    sampler = ak.AdaptiveSampler(ddim(), 5, NEVER, guidance_scale=2.0)
    with pytest.raises(ValueError, match=message):
        sampler(toy, noise(), {"shift": torch.zeros(3)}, unconditional, progress=False)


def test_default_dtype_and_device_do_not_matter():
    x = noise()
    expected = sample(config=ak.AdaptiveConfig.paper(threshold=0.3), x=x)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        wide = sample(config=ak.AdaptiveConfig.paper(threshold=0.3), x=x)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(wide.latents, expected.latents)
    scheduler = ddim()
    with torch.device("meta"):
        moved = ak.AdaptiveSampler(
            scheduler, 20, ak.AdaptiveConfig.paper(threshold=0.3), guidance_scale=1.0
        )(toy, x, progress=False)
    assert torch.equal(moved.latents, expected.latents)


def test_a_network_of_another_dtype_is_refused_by_name():
    network = torch.nn.Linear(7, 7).double()
    with pytest.raises(TypeError, match="parameters are float64: convert it, or name its input"):
        sample(model=network)


def test_guidance_scale_one_is_no_guidance():
    rows = []

    def model(model_input, timestep, shift):
        rows.append(len(model_input))
        return toy(model_input, timestep, shift)

    sampler = ak.AdaptiveSampler(ddim(), 5, NEVER, guidance_scale=1.0)
    conditional = {"shift": torch.zeros(3)}
    sampler(model, noise(), conditional, progress=False)
    sampler(model, noise(), conditional, {"shift": torch.ones(3)}, progress=False)
    assert set(rows) == {3}


def test_conditioning_is_a_pytree_and_other_leaves_pass_through():
    def model(model_input, timestep, added, flag):
        assert flag == "as it is"
        assert len(added["inner"][0]) == len(model_input)
        return (toy(model_input, timestep, added["inner"][0]),)

    conditioning = {"added": {"inner": [torch.arange(3.0)]}, "flag": "as it is"}
    result = sample(
        config=ak.AdaptiveConfig.paper(threshold=0.3), model=model, conditioning=conditioning
    )
    direct = sample(
        config=ak.AdaptiveConfig.paper(threshold=0.3),
        model=toy,
        conditioning={"shift": torch.arange(3.0)},
    )
    assert torch.equal(result.latents, direct.latents)


def test_stochastic_noise_follows_the_seed_not_the_batch():
    scheduler = EulerAncestralDiscreteScheduler()
    config = ak.AdaptiveConfig.paper(threshold=0.5)
    together = sample(scheduler, config, seed=[7, 8, 9])
    again = sample(scheduler, config, seed=7)
    assert torch.equal(together.latents, again.latents)
    alone = sample(scheduler, config, x=noise()[2:], seed=9)
    assert torch.equal(alone.latents[0], together.latents[2])
    assert not torch.equal(together.latents, sample(scheduler, config, seed=6).latents)


def test_step_noise_gives_diffusers_own_stochastic_run():
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(12)
    generator = torch.Generator().manual_seed(5)
    x = noise() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x, t)
        out = toy(fed, t.expand(3))
        x = scheduler.step(out, t, x, generator=generator, return_dict=False)[0]
    generator = torch.Generator().manual_seed(5)
    z = torch.stack([torch.randn(SHAPE, generator=generator) for _ in range(12)])
    ours = sample(EulerAncestralDiscreteScheduler(), steps=12, step_noise=z)
    assert (ours.latents - x).abs().max() <= 1e-4 * x.abs().max()


def test_img2img_starts_inside_the_schedule():
    clean = torch.rand(SHAPE)
    scheduler = ddim()
    scheduler.set_timesteps(20)
    timesteps = scheduler.timesteps[8:]
    x = scheduler.add_noise(clean, noise(), timesteps[:1])
    for t in timesteps:
        x = scheduler.step(toy(x, t.expand(3)), t, x, return_dict=False)[0]
    sampler = ak.AdaptiveSampler(ddim(), 20, NEVER, strength=0.6)
    result = sampler(toy, noise(), latents=clean, progress=False)
    assert result.nfe.tolist() == [12] * 3
    assert (result.latents - x).abs().max() <= 1e-4
    with pytest.raises(ValueError, match=r"latents must be given, .* leaves out the first 8 rows"):
        sampler(toy, noise(), progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_network_runs_in_its_own_dtype_and_latents_stay_float32(dtype):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.8, dtype=dtype))

        def forward(self, model_input, timestep):
            assert model_input.dtype == dtype
            return torch.tanh(model_input * self.gain)

    result = sample(model=Network(), config=ak.AdaptiveConfig.paper(threshold=0.4))
    assert result.latents.dtype == torch.float32
    forced = ak.AdaptiveSampler(ddim(), 5, NEVER, dtype=dtype)
    forced(lambda x, t: x if x.dtype == dtype else pytest.fail("dtype"), noise(), progress=False)


def test_callback_sees_every_tick_and_the_bar_can_be_off(capfd):
    infos = []

    def callback(info):
        infos.append((info.tick, info.index.tolist(), info.nfe.tolist(), info.latents().shape))

    result = sample(config=ak.AdaptiveConfig.paper(threshold=0.3), callback=callback)
    assert [info[0] for info in infos] == list(range(1, int(result.nfe.max()) + 1))
    assert infos[-1][1] == [20] * 3
    assert infos[-1][2] == result.nfe.tolist()
    assert infos[0][3] == SHAPE
    assert capfd.readouterr().err == ""
    ak.AdaptiveSampler(ddim(), 5)(toy, noise())
    assert "15/15" in capfd.readouterr().err


def test_the_scheduler_is_left_as_it_was_and_a_table_serves_in_its_place():
    scheduler = ddim()
    before = {
        k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in vars(scheduler).items()
    }
    first = sample(scheduler)
    for key, value in vars(scheduler).items():
        same = (
            torch.equal(value, before[key])
            if isinstance(value, torch.Tensor)
            else (value == before[key])
        )
        assert same, key
    table = ak.SolverTable.from_scheduler(scheduler, 20)
    second = ak.AdaptiveSampler(table, config=NEVER)(toy, noise(), progress=False)
    assert torch.equal(first.latents, second.latents)


def test_nan_and_inf_are_reported_and_stay_in_their_sample():
    x = noise()
    clean = sample(config=ak.AdaptiveConfig.paper(threshold=5.0), x=x)
    assert not bool(clean.nonfinite.any())
    for bad in (torch.nan, torch.inf):
        sick = x.clone()
        sick[1, 0, 0, 0] = bad
        with pytest.warns(RuntimeWarning, match=r"samples \[1\] hold NaN or Inf"):
            result = sample(config=ak.AdaptiveConfig.paper(threshold=5.0), x=sick)
        assert result.nonfinite.tolist() == [False, True, False]
        assert result.nfe[1] == 20 > clean.nfe[1]
        assert torch.equal(result.latents[[0, 2]], clean.latents[[0, 2]])


def test_zero_samples_give_an_empty_result():
    result = sample(x=torch.zeros(0, 2, 5, 7))
    assert result.latents.shape == (0, 2, 5, 7)
    assert result.nfe.shape == (0,)
    assert result.refreshed.shape == (20, 0)


def test_a_model_that_fails_leaves_nothing_behind():
    sampler = ak.AdaptiveSampler(ddim(), 20, ak.AdaptiveConfig.paper(threshold=0.3))
    good = sampler(toy, noise(), progress=False)
    calls = []

    def breaks(model_input, timestep):
        calls.append(1)
        if len(calls) == 4:
            raise ArithmeticError("in the middle")
        return toy(model_input, timestep)

    with pytest.raises(ArithmeticError, match="in the middle"):
        sampler(breaks, noise(), progress=False)
    again = sampler(toy, noise(), progress=False)
    assert torch.equal(good.latents, again.latents)
    assert torch.equal(good.nfe, again.nfe)


def test_two_threads_do_not_disturb_each_other():
    shared = ak.AdaptiveSampler(ddim(), 30, ak.AdaptiveConfig.paper(threshold=0.3))
    expected = [shared(toy, noise(seed=s), progress=False) for s in range(2)]
    found = {}

    def work(s):
        found[s] = [shared(toy, noise(seed=s), progress=False) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(s,)) for s in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for s in range(2):
        assert len(found[s]) == 10
        for result in found[s]:
            assert torch.equal(result.latents, expected[s].latents)
            assert torch.equal(result.refreshed, expected[s].refreshed)


class Returns:
    def __init__(self, value):
        self.value = value

    def __call__(self, model_input, timestep, **conditioning):
        return self.value(model_input) if callable(self.value) else self.value


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be callable, got int"),
        (
            {"model": Returns(lambda x: x[:, :1])},
            ValueError,
            r"must return the shape of its input \(3, 2, 5, 7\), got \(3, 1, 5, 7\)",
        ),
        ({"model": Returns(lambda x: x.long())}, TypeError, "must return floating-point numbers"),
        ({"model": Returns(None)}, TypeError, "must return a tensor.*got NoneType"),
        ({"model": Returns(lambda x: x.to("meta"))}, ValueError, "a tensor on cpu, got meta"),
        ({"x": torch.zeros(3)}, TypeError, r"noise must be .* at least 2 dimensions"),
        ({"x": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "noise must be a floating-point"),
        ({"x": [1.0]}, TypeError, "noise must be a floating-point tensor.*got list"),
        (
            {"conditioning": {"shift": torch.zeros(2)}},
            ValueError,
            r"conditioning\['shift'\] must have one row per sample, first dimension 3, got .*\(2",
        ),
        ({"conditioning": torch.zeros(3)}, TypeError, "conditioning must be a mapping"),
        (
            {"unconditional": {"shift": torch.zeros(3)}},
            ValueError,
            "unconditional needs a guidance_scale",
        ),
        (
            {"latents": torch.zeros(3, 2, 5, 6)},
            ValueError,
            r"latents must have shape \(3, 2, 5, 7\), got \(3, 2, 5, 6\)",
        ),
        (
            {"step_noise": torch.zeros(SHAPE)},
            ValueError,
            r"step_noise must have shape \(20, 3, 2, 5, 7\)",
        ),
        ({"seed": [1, 2]}, ValueError, "seed must be an int or 3 ints"),
        ({"seed": 0.5}, ValueError, "seed must be an int or 3 ints"),
        ({"seed": 2**63 - 2}, ValueError, "seed must be so that all 3 of them fit int64, got 9223"),
        ({"seed": -(2**63) - 1}, ValueError, "seed must be so that all 3 of them fit int64"),
    ],
)
def test_refusals_of_a_call(call, error, message):
    with pytest.raises(error, match=message):
        sample(**call)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ak.AdaptiveSampler(ddim(), 0), ValueError, "num_inference_steps"),
        (lambda: ak.AdaptiveSampler(ddim(), -3), ValueError, "num_inference_steps"),
        (lambda: ak.AdaptiveSampler(ddim()), ValueError, "num_inference_steps"),
        (lambda: ak.AdaptiveSampler("ddim", 5), TypeError, "scheduler"),
        (
            lambda: ak.AdaptiveSampler(DDIMScheduler(), 5),
            ak.UnsupportedSchedulerError,
            "clip_sample",
        ),
        (
            lambda: ak.AdaptiveSampler(PNDMScheduler(), 8),
            ValueError,
            "of which at most 8 are kept.*skip_prk_steps=True",
        ),
        (
            lambda: ak.AdaptiveSampler(ddim(), 5, {"threshold": 1}),
            TypeError,
            "config must be an AdaptiveConfig, got dict",
        ),
        (lambda: ak.AdaptiveSampler(ddim(), 5, guidance_scale="2"), TypeError, "guidance_scale"),
        (
            lambda: ak.AdaptiveSampler(ddim(), 5, guidance_scale=float("nan")),
            ValueError,
            "guidance_scale must be finite",
        ),
        (
            lambda: ak.AdaptiveSampler(ddim(), 5, dtype=torch.float64),
            ValueError,
            "dtype must be torch.float32, torch.float16 or torch.bfloat16",
        ),
        (
            lambda: ak.AdaptiveSampler(ddim(), 5, guidance=5),
            TypeError,
            "^AdaptiveSampler has no argument 'guidance', nor has DDIMScheduler.set_timesteps"
            r"\(\); did you mean guidance_scale",
        ),
        (
            lambda: ak.AdaptiveSampler(FlowMatchEulerDiscreteScheduler(), 5, sigma=[1.0]),
            TypeError,
            r"has no argument 'sigma', nor has .*, which takes mu, sigmas, timesteps; .* sigmas\?",
        ),
        (
            lambda: ak.AdaptiveSampler(ak.SolverTable.from_scheduler(ddim(), 5), guidance=5),
            TypeError,
            r"^AdaptiveSampler has no argument 'guidance'; did you mean guidance_scale\?",
        ),
        (
            lambda: ak.AdaptiveSampler(ak.SolverTable.from_scheduler(ddim(), 5), mu=1.0),
            ValueError,
            "a SolverTable already fixes the steps; drop mu",
        ),
        (
            lambda: ak.AdaptiveSampler(Open(clip_sample=False), 5, device="meta"),
            TypeError,
            "AdaptiveSampler has no argument 'device'",
        ),
        (
            lambda: ak.SolverTable.from_scheduler(ddim(), 5, strenght=0.5),
            TypeError,
            r"^SolverTable.from_scheduler has no argument 'strenght', .* did you mean strength\?",
        ),
        (lambda: sample(gather="no"), TypeError, "gather must be a bool, got 'no'"),
        (
            lambda: ak.AdaptiveSampler(ddim(), 5)(toy, noise(), progress=1),
            TypeError,
            "progress must be a bool, got 1",
        ),
        (lambda: sample(x=noise().to("meta")), ValueError, "noise must have values, got a meta"),
        (
            lambda: sample(seed=torch.arange(3).to("meta")),
            ValueError,
            "seed must have values, got a meta",
        ),
        (
            lambda: ak.AdaptiveSampler(ak.SolverTable.from_scheduler(ddim(), 5), 5),
            ValueError,
            "already fixes the steps; drop num_inference_steps",
        ),
        (
            lambda: ak.AdaptiveSampler(ddim(), 5, guidance_scale=2.0)(toy, noise(), progress=False),
            ValueError,
            "unconditional must be given with guidance_scale",
        ),
        (
            lambda: ak.AdaptiveSampler(ddim(), 5, guidance_scale=torch.ones(2))(
                toy, noise(), {}, {}, progress=False
            ),
            ValueError,
            r"guidance_scale must have one value per sample \(3\), got 2",
        ),
        (
            lambda: ak.AdaptiveSampler(ddim(), 5, guidance_scale=2.0)(
                toy, noise(), {"shift": torch.zeros(3)}, {}, progress=False
            ),
            ValueError,
            r"must name the same arguments; unconditional has no \['shift'\]",
        ),
    ],
)
def test_refusals_of_a_sampler(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_results_print_in_one_short_line():
    ticks = []
    result = sample(
        config=ak.AdaptiveConfig(criterion="every(3)"),
        callback=lambda info: ticks.append(repr(info)),
    )
    calls = int(result.nfe[0])
    text = f"latents {[*SHAPE]}, NFE {calls}.0 of 20, executor 'eager'"
    assert repr(result) == f"SamplingResult({text})"
    assert ticks[-1] == (
        f"StepInfo(tick {calls}, 3 samples, steps done 20.0 of 20, NFE {calls}.0 of 20)"
    )
    apart = replace(result, nfe=torch.tensor([4, 5, 9]), nonfinite=torch.tensor([True] * 3))
    assert "NFE 6.0 of 20 (4-9), executor 'eager', 3 with NaN or Inf" in repr(apart)
    state = ak.AdaptiveSampler(ddim(), 20, guidance_scale=2.0).begin(toy, noise())
    assert repr(state) == (
        "State(3 samples of 70 elements on cpu, 20 steps, network of 6 rows in float32)"
    )


def test_non_contiguous_noise_and_outputs_work():
    x = torch.randn(7, 5, 2, 3).permute(3, 2, 1, 0)
    assert not x.is_contiguous()
    before = x.clone()
    strided = sample(x=x, model=lambda i, t: toy(i, t).mT.contiguous().mT)
    plain = sample(x=x.contiguous())
    assert torch.equal(strided.latents, plain.latents)
    assert torch.equal(x, before), "noise is not written to"


def test_the_last_seeds_of_int64_are_seeds_too():
    from adaptive_kernels.sampling.inputs import seeds_of

    last = 2**63 - 1
    for batch in (1, 3):
        seeds = seeds_of(last - batch + 1, batch, torch.device("cpu"))
        assert seeds.tolist() == [*range(last - batch + 1, last + 1)]
    assert seeds_of(-(2**63), 2, torch.device("cpu")).tolist() == [-(2**63), 1 - 2**63]
    assert seeds_of(7, 0, torch.device("cpu")).tolist() == []


def test_noise_beyond_float32_is_infinite():
    config = ak.AdaptiveConfig(output_noise=1e39)
    state = ak.AdaptiveSampler(ddim(), 4, config).begin(lambda x, t: x, noise())
    assert state.output_noise.tolist() == [float("inf")] * len(state.output_noise)
