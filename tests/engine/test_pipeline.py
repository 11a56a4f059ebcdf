"""An engine of a pipeline makes the pipeline's own images, and leaves the pipeline as it was."""

import PIL.Image
import pytest
import torch

import adaptive_kernels as ak
from tests.support.pipelines import image
from tests.support.pipelines.parts import SIZE, controlnet, feature_extractor, scheduler, vae

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PIXELS = {"height": 2 * SIZE, "width": 2 * SIZE}
NEVER = ak.AdaptiveConfig(criterion="never")
STEPS = 6
FAMILIES = {
    "sd": (image.sd, {}),
    "sd, ddim": (lambda: image.sd(solver=scheduler("DDIMScheduler", clip_sample=False)), {}),
    "sdxl": (image.sdxl, {}),
    "sd3": (image.sd3, {"max_sequence_length": 16}),
    "flux": (image.flux, {"max_sequence_length": 16}),
}


def engine(pipe, more=(), **options):
    given = {"slots": 3, "config": NEVER, "output_type": "pt", **PIXELS, **dict(more), **options}
    return ak.Engine.from_pipeline(pipe, STEPS, **given)


def own(pipe, sample, more=(), output_type="pt"):
    """What the pipeline itself makes of a sample's request."""
    request = sample.request
    given = {"prompt": request} if isinstance(request, str) else request.conditioning
    seed = 0 if isinstance(request, str) else request.seed
    scale = None if isinstance(request, str) else request.guidance_scale
    scale = {} if scale is None else {"guidance_scale": scale}
    options = {"output_type": output_type, "num_inference_steps": STEPS, **PIXELS, **dict(more)}
    generator = torch.Generator().manual_seed(seed)
    return pipe(**given, **scale, **options, generator=generator).images[0]


def requests():
    """More than slots, with seeds, negative prompts and scales of their own, and plain prompts."""
    texts = ["a cat", "dogs", "", "a red ball"]
    made = [ak.Request(seed=n, conditioning={"prompt": text}) for n, text in enumerate(texts)]
    negative = {"prompt": "a cat", "negative_prompt": "dog"}
    made.insert(1, ak.Request(id="negative", seed=8, conditioning=negative))
    for scale in (1.0, 3.0):
        given = {"conditioning": {"prompt": "hat"}, "guidance_scale": scale}
        made.append(ak.Request(seed=9, **given))
    return [*made, "a plain prompt"]


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_the_pipelines_own(family):
    make, more = FAMILIES[family]
    pipe, given = make(), requests()
    if family == "flux":
        # It takes its negative prompt with a second network call alone.
        given = [r for r in given if isinstance(r, str) or "negative_prompt" not in r.conditioning]
    own(pipe, ak.Sample("", 0, "so that it has what its calls leave on it"), more)
    parts = {"pipe": pipe, "scheduler": pipe.scheduler, **pipe.components}
    before = {name: {*vars(part)} for name, part in parts.items() if hasattr(part, "__dict__")}
    one = engine(pipe, more)
    out = list(one.run(given, ordered=True, progress=False))
    assert [sample.request for sample in out] == given
    assert {name: {*vars(parts[name])} for name in before} == before
    images = []
    for sample in out:
        expected = own(pipe, sample, more)
        assert sample.image.shape == expected.shape == (3, *PIXELS.values())
        # Rounding of float32, in images from 0 to 1.
        assert (sample.image - expected).abs().max() < 2e-5, sample
        images.append(expected)
    for n in range(len(images) - 1):
        assert (images[n] - images[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_what_skips_is_the_same_in_every_number_of_slots(family):
    make, more = FAMILIES[family]
    config = ak.AdaptiveConfig.paper(threshold=0.3)
    results = []
    for slots in (1, 4):
        one = engine(make(), more, config=config, slots=slots, output_type="latent")
        results.append(list(one.run(requests(), ordered=True, progress=False)))
    for a, b in zip(*results, strict=True):
        assert a.image is b.image is None and a.nfe == b.nfe
        assert (a.latents - b.latents).abs().max() < 1e-4 * a.latents.abs().max()
    assert min(sample.nfe for sample in results[0]) < STEPS


def test_half_precision_pipelines_stay_in_it():
    pipe = image.sdxl().to(torch.bfloat16)
    one = engine(pipe)
    sample = next(one.run([ak.Request(seed=2, conditioning={"prompt": "cat"})], progress=False))
    assert one.engine.dtype == torch.bfloat16
    # Its own latents are rounded at every step, ours are not: no closer than that.
    expected = own(pipe, sample)
    assert (sample.image - expected).float().abs().mean() < 0.02
    sample = next(one.run([ak.Request(seed=3, conditioning={"prompt": "cat"})], progress=False))
    assert (sample.image - expected).float().abs().mean() > 0.04


def test_images_are_pil_unless_told_and_noise_may_be_given():
    pipe = image.sd()
    options = {"slots": 3, "config": NEVER, **PIXELS}
    one = ak.Engine.from_pipeline(pipe, STEPS, **options)
    noise = torch.randn(4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    pair = [ak.Request(conditioning={"prompt": "cat"}, noise=noise), "cat"]
    a, b = one.run(pair, progress=False)
    assert isinstance(a.image, PIL.Image.Image) and a.image.size == (2 * SIZE, 2 * SIZE)
    # The seed's noise is that of `torch.randn`, as diffusers draws it.
    assert torch.equal(a.latents, b.latents) and a.image.tobytes() == b.image.tobytes()


def test_prompts_and_images_go_in_batches():
    pipe = image.sd()
    encoded, decoded = [], []
    pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: encoded.append(len(args[0])), with_kwargs=True
    )
    decode = pipe.vae.decode
    pipe.vae.decode = lambda x, **k: (decoded.append(len(x)), decode(x, **k))[1]
    one = engine(pipe, encode_batch=4, decode_batch=3, slots=2)
    encoded.clear()
    assert len(list(one.run(["cat"] * 10, progress=False))) == 10
    # The negative prompts are encoded beside them.
    assert encoded[::2] == encoded[1::2] == [4, 4, 2] and decoded == [3, 3, 3, 1]
    assert one.report()["samples"] == 10


def test_none_in_the_queue_ends_a_batch_of_prompts():
    one, sizes = engine(image.sd(), encode_batch=8), []
    encode = one._encoder.encode
    one._encoder.encode = lambda chunk: (sizes.append(len(chunk)), encode(chunk))[1]
    given = ["cat", "x", None, "dog", None, None, "hat"]
    out = one.run(iter(given), ordered=True, progress=False)
    assert [sample.request for sample in out] == ["cat", "x", "dog", "hat"]
    assert [size for size in sizes if size] == [2, 1, 1]


def test_embeddings_are_taken_as_prompts_are_in_whatever_dtype():
    pipe = image.sd()
    one = engine(pipe)
    with torch.no_grad():
        embeds = pipe.encode_prompt("a cat", torch.device("cpu"), 1, True, negative_prompt="dog")
    names = ("prompt_embeds", "negative_prompt_embeds")
    halves = dict(zip(names, embeds[:2], strict=True))
    double = {name: value.double() for name, value in halves.items()}
    given = [ak.Request(seed=4, conditioning=c) for c in (halves, double)]
    prompts = {"prompt": "a cat", "negative_prompt": "dog"}
    given.append(ak.Request(seed=4, conditioning=prompts))
    a, b, c = one.run(given, ordered=True, progress=False)
    assert (a.image - own(pipe, a)).abs().max() < 2e-5
    for other in (b, c):
        assert (a.image - other.image).abs().max() < 2e-5


def test_what_a_pipeline_does_to_its_images_is_done():
    """A VAE that must not run in half precision, a safety checker, a watermark."""
    pipe = image.sd(safety_checker=Checker(), feature_extractor=feature_extractor())
    pipe.run_safety_checker = lambda images, device, dtype: (images * 0 + 0.5, [True] * len(images))
    sample = next(engine(pipe).run(["cat"], progress=False))
    # Flagged images are not brought from [-1, 1] to [0, 1].
    assert bool((sample.image == 0.5).all())
    pipe = image.sdxl(vae=vae(force_upcast=True)).to(torch.float16)
    pipe.watermark = Watermark()
    seen, decode = [], pipe.vae.decode

    def watched(x, **options):
        seen.append((x.dtype, pipe.vae.dtype))
        return decode(x, **options)

    pipe.vae.decode = watched
    sample = next(engine(pipe).run(["cat"], progress=False))
    assert seen == [(torch.float32, torch.float32)] and pipe.vae.dtype == torch.float16
    assert bool((sample.image[:, :4] == 1).all()) and not bool((sample.image == 1).all())


class Checker(torch.nn.Module):
    device, dtype = torch.device("cpu"), torch.float32


class Watermark:
    """Rows of white at the top."""

    def apply_watermark(self, images):
        images[..., :4, :] = 1
        return images


BAD = [
    (3, TypeError, "a request must be a prompt or a Request, got int"),
    (ak.Request(), TypeError, "conditioning must be a dict of the pipeline's arguments"),
    (ak.Request(conditioning={"prompt": 3}), TypeError, "prompt must be a str or a tensor"),
    (ak.Request(conditioning={"promt": "x"}), TypeError, "no argument 'promt'; did you mean pro"),
    (ak.Request(conditioning={"prompt": "x", "height": 3}), ValueError, "got height: what else"),
    (
        ak.Request(conditioning={"prompt": "x", "guidance_rescale": 0.7}),
        *(ValueError, "got guidance_rescale: what else the pipeline takes is the engine's"),
    ),
    (
        ak.Request(
            conditioning={
                "prompt_embeds": torch.ones(1, 3, 32),
                "negative_prompt_embeds": torch.ones(1, 3, 32),
            }
        ),
        *(ValueError, r"must have shape \(1, 16, 32\) as of every prompt, got \(1, 3, 32\)"),
    ),
    (ak.Request(seed="x", conditioning={"prompt": "x"}), TypeError, "seed must be an int"),
    (
        ak.Request(conditioning={"prompt": "x"}, unconditional={}),
        *(ValueError, "unconditional must be None.*takes a negative_prompt"),
    ),
    (
        ak.Request(conditioning={"prompt": "x"}, strength=0.5),
        *(ValueError, "strength must be None for an engine of a pipeline"),
    ),
    (
        ak.Request(conditioning={"prompt": "x"}, guidance_scale="3"),
        *(TypeError, "guidance_scale must be a number, got '3'"),
    ),
]


def test_a_bad_prompt_fails_alone_and_the_others_go_on():
    one = engine(image.sd(), encode_batch=20)
    for bad, kind, match in BAD:
        given = ["cat", bad, "dog"]
        out = list(one.run(given, on_error="yield", ordered=True, progress=False))
        assert [sample.request for sample in out] == given
        with pytest.raises(kind, match=match):
            raise out[1].error
        assert out[0].image is not None and out[1].image is None and out[2].image is not None
    finished = []
    with pytest.raises(ak.RequestError, match="request 1: a request must be a prompt"):
        for sample in one.run(["cat", 3, "dog"], progress=False):
            finished.append(sample)
    assert [sample.request for sample in finished] == ["cat"]
    assert finished[0].image is not None
    for bad, name in ((3, "int"), ("cat", "one str"), ({"prompt": "cat"}, "one dict")):
        with pytest.raises(TypeError, match=f"iterable of prompts, got {name}"):
            one.run(bad)
    before, one.pipe.scheduler = one.pipe.scheduler, scheduler("DDIMScheduler")
    with pytest.raises(ak.RequestError, match="pipe must keep the scheduler"):
        list(one.run(["cat"], progress=False))
    one.pipe.scheduler = before


def test_images_that_wait_for_others_are_handed_out_before_a_failure():
    pipe = image.sd()
    one = engine(pipe, slots=1, decode_batch=4)
    calls, forward = [], pipe.unet.forward

    def failing(*args, **kwargs):
        calls.append(None)
        if len(calls) > 2 * (STEPS + 1):
            raise OSError("the network is gone")
        return forward(*args, **kwargs)

    pipe.unet.forward = failing
    out = []
    with pytest.raises(ak.EngineError, match="the network is gone") as info:
        for sample in one.run(["a", "b", "c", "d"], progress=False):
            out.append(sample)
    assert [s.request for s in out] == ["a", "b"] and all(s.image is not None for s in out)
    assert info.value.unfinished == [2]
    pipe.unet.forward = forward
    assert len(list(one.run(["a"], progress=False))) == 1
    results = one.run(["a", "b"], progress=False)
    next(results)
    one.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        one.run(["a"])


def test_nobody_waits_for_others_while_the_queue_has_none():
    """A client that sends its next prompt once it has the image of the last one."""
    answers = []

    def prompts():
        for n in range(2):
            yield "cat"
            while len(answers) <= n:
                yield None

    one = engine(image.sd(), decode_batch=8)
    for sample in one.run(prompts(), progress=False):
        answers.append(sample)
    assert len(answers) == 2 and all(sample.image is not None for sample in answers)


def test_an_image_that_cannot_be_made_leaves_its_latents_and_the_others():
    pipe = image.sd()
    decode, batches = pipe.vae.decode, []
    one = engine(pipe, decode_batch=3)
    given = [ak.Request(seed=n, conditioning={"prompt": "cat"}) for n in range(3)]

    def fails(x, **options):
        batches.append(len(x))
        # Too many at a time, and the second one by itself.
        if len(x) > 1 or len(batches) == 3:
            raise torch.OutOfMemoryError("no room")
        return decode(x, **options)

    for on_error in ("yield", "raise"):
        batches.clear()
        pipe.vae.decode, out = fails, []
        try:
            for sample in one.run(given, on_error=on_error, ordered=True, progress=False):
                out.append(sample)
        except ak.RequestError as error:
            assert on_error == "raise" and error.id == 1 and "no room" in str(error)
        else:
            assert on_error == "yield"
        assert batches == [3, 1, 1, 1]
        assert [sample.image is None for sample in out] == [False, True, False]
        assert out[1].latents is not None and "no room" in str(out[1].error)
    pipe.vae.decode = decode


def test_an_image_that_cannot_be_made_ends_a_run_as_a_bad_request_does():
    """What is under way is finished and handed out first; nothing further is taken."""
    pipe = image.sd()
    decode, done = pipe.vae.decode, []

    def fails(x, **options):
        done.append(None)
        if len(done) == 2:
            raise OSError("no room")
        return decode(x, **options)

    pipe.vae.decode = fails
    one = engine(pipe, decode_batch=1, slots=2, encode_batch=1)
    prompts, out = iter("abcdefgh"), []
    with pytest.raises(ak.RequestError, match="request 1: no image came of its latents: no room"):
        for sample in one.run(prompts, ordered=True, progress=False):
            out.append(sample)
    # The two that were under way when it came to light are there.
    assert [s.request for s in out] == list("ab") and len(list(prompts)) == 6
    done.clear()
    prompts, out = iter("abcdefgh"), []
    one = engine(pipe, decode_batch=1, slots=3, encode_batch=1, config=ak.AdaptiveConfig.paper())
    with pytest.raises(ak.RequestError, match="no room"):
        for sample in one.run(prompts, progress=False):
            out.append(sample)
    assert len(out) + len(list(prompts)) == 8 and sum(s.image is None for s in out) == 1
    pipe.vae.decode = decode


def test_a_compiled_network_is_called_as_a_plain_one():
    pipe = image.sd()
    plain = next(engine(pipe).run(["cat"], progress=False))
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    compiled = next(engine(pipe).run(["cat"], progress=False))
    assert torch.allclose(plain.image, compiled.image, atol=1e-5)


def test_pipelines_that_do_something_else_are_refused_by_name():
    pipe = image.sdxl()
    refused = [
        ({"guidance_rescale": 0.7}, "guidance_rescale must be 0 for an engine of a pipeline"),
        ({"negative_prompt": "x"}, "negative_prompt must be given to each request"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt must be left out"),
        ({"callback_on_step_end": print}, "callback_on_step_end must be left out"),
        ({"output_type": "jpg"}, "output_type must be one of 'pil'"),
        ({"encode_batch": 0}, "encode_batch must be an int of at least 1, got 0"),
        ({"decode_batch": 1.5}, "decode_batch must be an int of at least 1, got 1.5"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
    ]
    for options, match in refused:
        with pytest.raises(ValueError, match=match):
            engine(pipe, **options)
    with pytest.raises(ValueError, match="eta must be 0 for EulerDiscreteScheduler, whose step"):
        engine(image.sdxl(), eta=1.0)
    with pytest.raises(TypeError, match="StableDiffusion3Pipeline has no argument 'eta'"):
        engine(image.sd3(), eta=1.0)
    for name in ("eta", "guidance_scale"):
        with pytest.raises(TypeError, match=f"{name} must be a number, got 'x'"):
            engine(pipe, **{name: "x"})
    for steps in (0, "x", True):
        with pytest.raises(ValueError, match="num_inference_steps must be an int of at least 1"):
            ak.Engine.from_pipeline(pipe, steps)
    with pytest.raises(TypeError, match="config must be an AdaptiveConfig, got float"):
        engine(pipe, config=0.1)
    with pytest.raises(TypeError, match="has no argument 'widht'; did you mean width"):
        engine(pipe, widht=3)
    with pytest.raises(TypeError, match="pipe must be a pipeline of diffusers, got Linear"):
        engine(torch.nn.Linear(2, 2))
    with (
        ak.adaptive(pipe),
        pytest.raises(ValueError, match="pipe must be a plain one, got an enabled one"),
    ):
        engine(pipe)
    controlled = image.sd("StableDiffusionControlNetPipeline", controlnet=controlnet())
    with pytest.raises(ValueError, match="output_type must be 'latent' for StableDiffusionContr"):
        engine(controlled)
    with pytest.raises(ValueError, match="pipe must have one network, got unet, controlnet"):
        engine(controlled, output_type="latent")
    with pytest.raises(ValueError, match="true_cfg_scale must be 1"):
        engine(image.flux(), true_cfg_scale=2.0)
    # Whatever it is called: the first step is looked at, in every precision.
    for make, dtype in ((image.sd, torch.float32), (image.sdxl, torch.bfloat16)):
        other = type("Other", (type(make()),), {"guidance_rescale": property(lambda self: 0.7)})
        rescaled = make().to(dtype)
        rescaled.__class__ = other
        with pytest.raises(ValueError, match=r"pipe must hand mu \+ g \(mc - mu\)"):
            engine(rescaled, output_type="latent")
    # All of that has left the pipeline as it was.
    plain = pipe("cat", num_inference_steps=2, output_type="pt", **PIXELS).images[0]
    assert plain.isfinite().all() and "progress_bar" not in vars(pipe)


def test_what_is_the_same_for_all_prompts_is_looked_at():
    """Another tensor without rows, or another plain value, would be that of the first call."""
    one = engine(image.flux(), {"max_sequence_length": 16})
    encoder = one._encoder
    for name, changed in (("img_ids", torch.ones(64, 3)), ("joint_attention_kwargs", {"scale": 2})):
        call = encoder.preamble.call

        def other(arguments, seeds, call=call, name=name, changed=changed):
            found = call(arguments, seeds)
            found.keywords[name] = changed
            return found

        encoder.preamble.call = other
        with pytest.raises(ak.RequestError, match="calls its network in another way for this"):
            list(one.run(["cat"], progress=False))
        encoder.preamble.call = call
    assert len(list(one.run(["cat"], progress=False))) == 1


def test_a_stochastic_solver_takes_eta_and_the_seeds_own_noise():
    pipe = image.sd(solver=scheduler("DDIMScheduler", clip_sample=False))
    one = engine(pipe, eta=1.0, slots=2)
    given = [ak.Request(seed=seed, conditioning={"prompt": "cat"}) for seed in (1, 2, 1)]
    a, b, c = one.run(given, ordered=True, progress=False)
    assert one.engine.table.adds_noise
    assert torch.allclose(a.latents, c.latents, atol=1e-4) and not torch.equal(a.latents, b.latents)
