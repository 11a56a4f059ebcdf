"""A request through the engine is the request alone, bit for bit, whatever stands beside it."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

import adaptive_kernels as ak
from tests.engine.parts import SHAPE, Rowwise, alone, assert_equal, engine, label, noise
from tests.support import problems
from tests.support.networks import Network

SLOTS = (1, 3, 16)
NULL = label(0)


def requests(draw, count, guided):
    """Requests of which some have a guidance, threshold or noise of their own."""
    made = []
    for n in range(count):
        scale = draw(st.sampled_from((None, 1.0, 2.5, 7.0))) if guided else None
        made.append(
            ak.Request(
                id=f"request {n}",
                seed=draw(st.integers(-(2**63), 2**63 - 1)),
                conditioning=label(draw(st.integers(1, 5))),
                unconditional=draw(st.sampled_from((None, label(6)))) if guided else None,
                guidance_scale=scale,
                threshold=draw(st.sampled_from((None, 0.0, 0.01, 0.5))),
                noise=draw(st.sampled_from((None, noise(7)[0]))),
            )
        )
    return made


@settings(max_examples=12)
@given(st.data())
@pytest.mark.parametrize("rule", [*problems.REUSE, *problems.FILLED])
def test_a_result_is_that_of_the_request_alone(rule, data):
    stochastic = data.draw(st.booleans())
    stages = data.draw(st.sampled_from((1, 2)))
    table = problems.table(8, 2, stages, stochastic)
    config = problems.config(rule, table)
    guided = data.draw(st.booleans())
    made = requests(data.draw, 6, guided)
    scale, null = (3.0, NULL) if guided else (None, None)
    slots = data.draw(st.sampled_from(SLOTS))
    one = engine(table, slots=slots, config=config, guidance_scale=scale, unconditional=null)
    # Two runs: the second one finds what the first has left in the slots.
    for order in (made, made[::-1]):
        results = {sample.id: sample for sample in one.run(order, progress=False)}
        for request in made:
            assert_equal(results[request.id], alone(table, request, config, scale, null))


def test_results_skip_calls_and_differ_from_each_other():
    """What the other tests compare is no constant."""
    table = problems.ddim(20)
    made = [ak.Request(seed=n, conditioning=label(n % 3)) for n in range(9)]
    out = list(
        engine(table, config=ak.AdaptiveConfig.paper(threshold=0.5)).run(made, progress=False)
    )
    calls = {sample.nfe for sample in out}
    assert len(calls) > 1 and max(calls) < 20
    assert len({float(sample.latents.sum()) for sample in out}) == 9


@pytest.mark.parametrize("gather", [True, False])
def test_image_to_image_stands_beside_text_to_image(gather):
    """Every start of the schedule, guided and not, in one batch."""
    clean = noise(40)[0].clamp(-1, 1)
    config = ak.AdaptiveConfig.paper(threshold=0.6)
    for scheduler in (DDIMScheduler(clip_sample=False), DPMSolverMultistepScheduler()):
        made, strengths = [], (None, 0.3, 0.7, 0.71, 1.0)
        for n, strength in enumerate(strengths * 2):
            latents = None if strength is None else clean * (1 + n / 10)
            scale = 1.0 if n % 3 == 0 else None
            options = {"latents": latents, "strength": strength, "guidance_scale": scale}
            made.append(ak.Request(seed=n, conditioning=label(n % 4), **options))
        model = Rowwise()
        shared = {"guidance_scale": 2.0, "unconditional": NULL}
        one = engine(
            *(scheduler, model, 4),
            **{"config": config, "num_inference_steps": 12, "gather": gather, **shared},
        )
        for sample in one.run(made, ordered=True, progress=False):
            strength = sample.request.strength
            table = {} if strength is None else {"strength": strength}
            got = alone(
                scheduler, sample.request, config, num_inference_steps=12, **table, **shared
            )
            assert_equal(sample, got)
            assert len(sample.refreshed) == (12 if strength is None else int(12 * strength))
        if not gather:
            # A row of the first half is there even where one has no guidance.
            assert set(model.sizes) <= {4, 8} and 8 in model.sizes
        # 0.7 and 0.71 of 12 steps are the same eight.
        begins = {(lane.table.begin, lane.guided) for lane in one._batch.lanes.values()}
        assert {begin for begin, _ in begins} == {0, 4, 9}


def test_a_scheduler_that_shortens_its_own_schedule_takes_strengths():
    clean = noise(41)[0]
    made = [ak.Request(seed=n, latents=clean, strength=s) for n, s in enumerate((0.5, 0.8))]
    config = ak.AdaptiveConfig(criterion="never")
    one = engine(LCMScheduler(), num_inference_steps=4, config=config, slots=2)
    for sample in one.run(made, progress=False):
        strength = sample.request.strength
        got = alone(
            *(LCMScheduler(), sample.request, config), num_inference_steps=4, strength=strength
        )
        assert_equal(sample, got)


def test_nan_in_one_sample_touches_no_other():
    table = problems.ddim(10)
    config = ak.AdaptiveConfig(0.05)
    bad = noise(3)[0]
    bad[0, 1, 2] = torch.nan
    made = [ak.Request(seed=n, conditioning=label(1), noise=bad if n % 4 == 1 else None)
            for n in range(12)]  # fmt: skip
    one = engine(table, config=config)
    with pytest.warns(RuntimeWarning, match="latents of request 1 hold NaN or Inf") as told:
        out = list(one.run(made, ordered=True, progress=False))
    assert len(told) == 1 and told[0].filename == __file__ and one.report()["nonfinite"] == 3
    assert [sample.nonfinite for sample in out] == [n % 4 == 1 for n in range(12)]
    for sample in out:
        if not sample.nonfinite:
            # Those that came into a slot that held NaN before, too.
            assert_equal(sample, alone(table, sample.request, config))
    assert {out[1].slot, out[5].slot} & {s.slot for s in out if not s.nonfinite}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_fed_their_dtype(dtype):
    seen = set()

    def model(x, timestep, label):
        seen.add(x.dtype)
        return Network()(x.float(), timestep, label.float()).to(dtype)

    table, config = problems.ddim(12), ak.AdaptiveConfig(0.02)
    made = [ak.Request(seed=n, conditioning=label(n)) for n in range(7)]
    one = engine(table, Rowwise(model), config=config, dtype=dtype)
    sampler = ak.AdaptiveSampler(table, config=config, dtype=dtype)
    for sample in one.run(made, progress=False):
        seed, conditioning = sample.request.seed, sample.request.conditioning
        whole = sampler(Rowwise(model), noise(seed), conditioning, seed=[seed], progress=False)
        assert_equal(sample, whole)
    assert seen == {dtype}


def test_the_network_is_called_on_the_rows_in_use_or_on_all():
    table, config = problems.ddim(10), ak.AdaptiveConfig(criterion="never")
    made = [ak.Request(seed=n, conditioning=label(n)) for n in range(5)]
    for gather, sizes in ((True, [4] * 10 + [1] * 10), (False, [4] * 20)):
        model = Rowwise()
        one = engine(table, model, 4, config=config, gather=gather)
        assert len(list(one.run(made, progress=False))) == 5
        assert model.sizes == sizes
        report = one.report()
        assert report["wasted_rows"] == (0 if gather else 30) and report["idle_rows"] == 30


def test_a_network_compiled_for_one_size_is_compiled_once():
    """Through the end of the queue, where slots are empty."""
    table, counter = problems.ddim(6), CompileCounter()

    def plain(x, timestep, label):
        return torch.tanh(x) * (timestep + label)[:, None, None, None] / 1000

    network = torch.compile(plain, backend=counter, dynamic=False)
    made = [ak.Request(seed=n, conditioning=label(n)) for n in range(7)]
    one = engine(table, network, 3, config=ak.AdaptiveConfig.paper(threshold=0.5), gather=False)
    torch.compiler.reset()
    assert len(list(one.run(made, progress=False))) == 7 and counter.frame_count == 1


def test_plain_values_and_nested_conditions_reach_the_network():
    got = []

    def model(x, timestep, added, scale):
        got.append((added["text"][0].shape, scale))
        return x * added["text"][0][:, :1, None, None] * scale

    made = [
        ak.Request(
            seed=n, conditioning={"added": {"text": [torch.full((1, 3), n / 9)]}, "scale": 2}
        )
        for n in range(4)
    ]
    table, config = problems.ddim(6), ak.AdaptiveConfig(criterion="never")
    out = list(engine(table, Rowwise(model) and model, config=config).run(made, progress=False))
    assert len(out) == 4 and {shape for shape, _ in got} == {(3, 3), (1, 3)}
    assert {scale for _, scale in got} == {2}


def test_the_schedulers_noise_scale_and_shape_are_the_samplers():
    """A table whose noise has another scale than 1, and samples of one dimension."""
    from diffusers import EulerDiscreteScheduler

    config = ak.AdaptiveConfig(criterion="never")
    model = lambda x, t: x * 0.5  # noqa: E731
    one = engine(EulerDiscreteScheduler(), model, 2, (5,), num_inference_steps=8, config=config)
    sample = next(one.run([ak.Request(seed=3)], progress=False))
    sampler = ak.AdaptiveSampler(EulerDiscreteScheduler(), 8, config)
    got = sampler(model, noise(3, (5,)), seed=[3], progress=False)
    assert torch.equal(sample.latents, got.latents[0]) and sample.latents.shape == (5,)


def test_lanes_at_rest_make_room():
    """A service may be asked for any strength: states do not pile up."""
    clean = noise(42)[0]
    steps = 30
    made = [ak.Request(seed=n, latents=clean, strength=(n + 1) / steps) for n in range(steps)]
    one = engine(
        DDIMScheduler(clip_sample=False), slots=2, num_inference_steps=steps,
        config=ak.AdaptiveConfig(criterion="never"),
    )  # fmt: skip
    assert len(list(one.run(made, progress=False))) == steps
    assert len(one._batch.lanes) <= 8


def test_shape_of_latents_may_have_the_batch_before_it():
    table, config = problems.ddim(6), ak.AdaptiveConfig(criterion="never")
    pair = [ak.Request(noise=noise(1)), ak.Request(noise=noise(1)[0])]
    a, b = engine(table, config=config).run(pair, progress=False)
    assert torch.equal(a.latents, b.latents) and a.latents.shape == SHAPE
