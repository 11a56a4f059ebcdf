"""diffusers' transformers as they are: what their own pipelines do, the sampler does."""

import ast
import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.sampling.network.signature import OTHERWISE, TIMESTEP_SCALES
from tests.support.pipelines import image
from tests.support.pipelines.cases import CASES
from tests.support.pipelines.parts import quiet, scheduler

STEPS = 8
PIPELINES = Path(diffusers.__file__).parent / "pipelines"


def cogvideox():
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    ).eval()
    # Smaller than what it was made for, which the pipeline cannot know without its VAE.
    return quiet(
        diffusers.CogVideoXPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=transformer,
            scheduler=scheduler("CogVideoXDDIMScheduler", clip_sample=False),
        )
    )


def embeds(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


FAMILIES = {
    "sd3": (image.sd3, lambda: {"prompt": ["a", "b"], "negative_prompt": ["c", "c"]}, 7.0),
    "flux": (image.flux, lambda: {"prompt": ["a", "b"], "height": 32, "width": 32}, None),
    "pixart": (image.pixart, CASES["pixart"].arguments, 4.5),
    "cogvideox": (
        cogvideox,
        lambda: {
            **{"prompt_embeds": embeds(2, 6, 32), "negative_prompt_embeds": embeds(2, 6, 32)},
            **{"height": 32, "width": 32, "num_frames": 9},
        },
        6.0,
    ),
}


class Recorded:
    """What a pipeline gives its transformer at the first call, and the latents it ends with."""

    def __init__(self, pipe, arguments):
        calls = []

        def note(module, given, named):
            calls.append((given, named))

        with pipe.transformer.register_forward_pre_hook(note, with_kwargs=True):
            generator = torch.Generator().manual_seed(0)
            output = pipe(
                **arguments, num_inference_steps=STEPS, generator=generator, output_type="latent"
            )
        self.latents = output[0].float()
        given, named = calls[0]
        self.named = {"hidden_states": given[0], **named} if given else dict(named)
        self.model_input = self.named.pop("hidden_states")
        self.timestep = self.named.pop("timestep")
        self.named.pop("return_dict", None)


def halves(value, guided):
    """(unconditional, conditional) of rows; what is no tensor is the same for both."""
    if not guided or not isinstance(value, torch.Tensor):
        return value, value
    return value.chunk(2)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_transformer_as_it_is_gives_its_pipelines_latents(name):
    make, arguments, guidance = FAMILIES[name]
    pipe = make()
    recorded = Recorded(pipe, arguments() | ({"guidance_scale": guidance} if guidance else {}))
    rows = len(recorded.model_input)
    shared, own = {}, [{}, {}]
    for key, value in recorded.named.items():
        if isinstance(value, torch.Tensor) and len(value) == rows:
            own[0][key], own[1][key] = halves(value, guidance)
        elif value is not None:
            shared[key] = value
    # Of all of these the first input is the noise itself.
    noise = halves(recorded.model_input, guidance)[1]
    schedule = {}
    if name == "flux":
        # Its pipeline: sigmas of its own, and a mu that depends on the number of latents.
        schedule = {"sigmas": np.linspace(1.0, 1 / STEPS, STEPS), "mu": flux_mu(pipe, noise)}
    sampler = ak.AdaptiveSampler(
        pipe.scheduler,
        None if schedule else STEPS,
        ak.AdaptiveConfig(criterion="never"),
        guidance,
        progress=False,
        **schedule,
    )
    model = ak.denoiser(pipe.transformer, **shared) if shared else pipe.transformer
    result = sampler(model, noise, own[1], own[0] if guidance else None)
    expected = recorded.latents
    assert result.latents.shape == expected.shape
    size = expected.std()
    assert size > 0.1 and (result.latents - expected).abs().max() < 1e-5 * size
    scale = TIMESTEP_SCALES.get(type(pipe.transformer).__name__, 1)
    assert recorded.timestep[0].item() == pytest.approx(scale * sampler.table.timesteps[0].item())


def flux_mu(pipe, noise):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = pipe.scheduler.config
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(noise.shape[1], *(config[name] for name in names))


def sd3(dtype=torch.float32):
    model = image.sd3().transformer.to(dtype)
    given = {"encoder_hidden_states": embeds(2, 7, 32), "pooled_projections": embeds(2, 64)}
    return model, {name: value.to(dtype) for name, value in given.items()}


def flow(**options):
    solver = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return ak.AdaptiveSampler(solver, STEPS, progress=False, **options)


def test_a_half_precision_network_keeps_its_dtype():
    model, given = sd3(torch.bfloat16)
    seen = set()
    with model.register_forward_pre_hook(
        lambda module, args, named: seen.add(named["hidden_states"].dtype), with_kwargs=True
    ):
        unasked = flow()(model, embeds(2, 4, 8, 8), given)
        asked = flow()(ak.denoiser(model), embeds(2, 4, 8, 8), given)
    assert seen == {torch.bfloat16} and ak.denoiser(model).dtype == torch.bfloat16
    assert torch.equal(unasked.latents, asked.latents)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["transformer", "unet"])
def test_a_function_around_a_half_precision_network_is_told_of_dtype(kind, dtype):
    if kind == "transformer":
        model, given = sd3(dtype)
        call = lambda x, t, **more: model(hidden_states=x, timestep=t, **more)  # noqa: E731
    else:
        model = image.sd().unet.to(dtype)
        given = {"encoder_hidden_states": embeds(2, 7, 32).to(dtype)}
        call = lambda x, t, **more: model(x, t, **more)  # noqa: E731
    with pytest.raises(RuntimeError, match=r"fails on an input of float32: .*with dtype="):
        flow()(call, embeds(2, 4, 8, 8), given)
    assert flow(dtype=dtype)(call, embeds(2, 4, 8, 8), given).latents.isfinite().all()


def test_a_compiled_transformer_is_called_the_same_way():
    model, given = sd3()
    compiled = torch.compile(model, backend="eager")
    expected = flow()(model, embeds(2, 4, 8, 8), given)
    for network in (compiled, ak.denoiser(compiled)):
        assert torch.equal(flow()(network, embeds(2, 4, 8, 8), given).latents, expected.latents)


def test_whoever_defines_forward_says_how_it_is_called():
    """A user's subclass of a known network that does its own arithmetic is left alone."""
    seen = []

    class Mine(diffusers.FluxTransformer2DModel):
        def forward(self, x, t):
            seen.append(t[0].item())
            return torch.tanh(x)

    class Z(diffusers.ZImageTransformer2DModel):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, x, t):
            return -torch.tanh(x)

    tiny = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8}
    mine = Mine(num_attention_heads=1, in_channels=4, axes_dims_rope=[2, 2, 4], **tiny)
    flow()(mine, embeds(2, 4, 8))
    assert seen[0] == 1000.0
    flow()(Z(), embeds(2, 4, 8))


class OptionalTimestep(torch.nn.Module):
    def forward(self, hidden_states, t, timestep=None):
        assert timestep is None and t.shape == (2,)
        return torch.tanh(hidden_states)


class OptionalTimesteps(torch.nn.Module):
    def forward(self, hidden_states, sigma, scale=1.0, timesteps=None):
        assert timesteps is None and sigma.shape == (2,)
        return torch.tanh(hidden_states)


@pytest.mark.parametrize("kind", [OptionalTimestep, OptionalTimesteps])
def test_a_networks_own_order_stands_where_a_timestep_may_be_left_out(kind):
    assert flow()(kind(), embeds(2, 4, 8)).latents.isfinite().all()


class Words(torch.nn.Module):
    def forward(self, hidden_states, encoder_hidden_states, timestep):
        shift = encoder_hidden_states.view(len(hidden_states) * 3, -1).sum() * 0
        both = torch.cat([torch.tanh(hidden_states + shift), hidden_states], dim=1)
        return both if self.training else both[:, :4]


def test_wrappers_are_seen_through():
    """Parallel ones, whose own forward() takes anything."""
    words = {"encoder_hidden_states": embeds(1, 3, 2)}
    inner = Words().eval()
    wrapped = torch.nn.DataParallel(inner)
    results = [
        flow()(model, embeds(2, 4, 8), words).latents
        for model in (inner, wrapped, ak.denoiser(wrapped))
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_variance_is_left_out_where_it_is_one():
    """Of diffusers' networks by their configuration; of a user's own where it was asked for."""
    torch.manual_seed(0)
    dit = diffusers.DiTTransformer2DModel(
        **{"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 1},
        **{"out_channels": 8, "sample_size": 8, "num_embeds_ada_norm": 1000},
    ).eval()
    labels = {"class_labels": torch.tensor([1, 2])}
    result = flow()(dit, embeds(2, 4, 8, 8), labels)
    assert result.latents.shape == (2, 4, 8, 8)
    words, twice = {"encoder_hidden_states": embeds(1, 3, 2)}, Words().train()
    with pytest.raises(ValueError, match=r"output\[:, :4\], as denoiser\(model\) does"):
        flow()(twice, embeds(2, 4, 8), words)
    expected = flow()(Words().eval(), embeds(2, 4, 8), words)
    assert torch.equal(flow()(ak.denoiser(twice), embeds(2, 4, 8), words).latents, expected.latents)


def test_what_is_shared_keeps_its_dtype():
    table = torch.tensor([4097.3])
    wrapped = ak.denoiser(sd3()[0], joint_attention_kwargs={"table": table}).bfloat16()
    assert wrapped.dtype == torch.bfloat16
    assert torch.equal(wrapped.shared()["joint_attention_kwargs"]["table"], table)


def test_nothing_of_the_network_is_changed():
    model, given = sd3()
    model.train()
    model.transformer_blocks[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    wrapped = ak.denoiser(model)
    assert wrapped.training and [*wrapped.parameters()] == [*model.parameters()]
    flow()(wrapped, embeds(2, 4, 8, 8), given)
    assert before == {name: module.training for name, module in model.named_modules()}


def test_what_is_shared_goes_along_with_the_module():
    """Containers of tensors and plain values; half precision takes them with it."""

    class Net(torch.nn.Linear):
        def forward(self, hidden_states, extra, timestep):
            (first, second), factor = extra["pair"], extra["factor"]
            return (super().forward(hidden_states) + first + second) * factor

    extra = {"pair": (torch.ones(3), torch.full((3,), 2.0)), "factor": 0.5}
    wrapped = ak.denoiser(Net(3, 3), extra=extra)
    x, t = torch.zeros(2, 3), torch.zeros(2)
    bias = wrapped.model.bias.detach()
    assert torch.equal(wrapped(x, t), ((bias + 1 + 2) * 0.5).expand(2, 3))
    assert wrapped.double()(x.double(), t).dtype == torch.float64
    assert extra["pair"][0].dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: ak.denoiser(lambda x, t: x), TypeError, "model must be a torch.nn.Module, got"),
        (lambda m: ak.denoiser(m, timestep_scale=0), ValueError, "timestep_scale must be positive"),
        (lambda m: ak.denoiser(m, timestep_scale="no"), TypeError, "timestep_scale must be a num"),
        (
            lambda m: ak.denoiser(m, img_ids=torch.zeros(4, 3)),
            TypeError,
            "SD3Transformer2DModel takes no argument 'img_ids'",
        ),
        (
            lambda m: ak.denoiser(m, timestep=torch.zeros(1)),
            TypeError,
            "timestep is what a sampler gives SD3Transformer2DModel at each call, not shared",
        ),
        (
            lambda m: ak.denoiser(m, hidden_states=torch.zeros(1)),
            TypeError,
            "hidden_states is what a sampler gives",
        ),
    ],
)
def test_bad_arguments_of_a_denoiser_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(sd3()[0])


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_network_that_a_factor_does_not_serve_is_refused(name):
    assert hasattr(diffusers, name), "diffusers has it no more"
    model = type(name, (torch.nn.Module,), {"forward": lambda self, x, timestep: x})()
    for use in (ak.denoiser, lambda m: flow()(m, embeds(2, 4, 8, 8))):
        with pytest.raises(ValueError, match=f"pipeline of {name} takes .*pass a function"):
            use(model)


def scaled_by_their_pipelines():
    """Networks of diffusers whose pipelines divide the timestep, as their source says."""
    found = set()
    number = r"(1000|self\.scheduler\.config\.num)"
    divided = re.compile(rf"timestep / 1000|\bt(\.float\(\))? / {number}")
    kinds = re.compile(r"Transformer\w*Model$|DiT2DModel$")
    for file in PIPELINES.glob("*/pipeline_*.py"):
        text = file.read_text()
        if divided.search(text):
            imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
            names = {alias.name for node in imports for alias in node.names}
            found |= {name for name in names if kinds.search(name)}
    return found


def test_the_units_are_those_of_the_pipelines_source():
    """A network that a new diffusers brings, or another way of calling an old one, fails here."""
    known = {*TIMESTEP_SCALES, *OTHERWISE}
    found = scaled_by_their_pipelines()
    assert {*TIMESTEP_SCALES} <= found
    assert found - known <= NOT_SCALED, found - known - NOT_SCALED


# Divided to be compared with a mask of the frames that are given.
NOT_SCALED = {"LTXVideoTransformer3DModel", "SanaWMTransformer3DModel"}


# -- what is the same for all samples, and halves that do not stack


def test_one_row_of_conditioning_is_every_samples():
    model, given = sd3()
    one = {name: value[:1] for name, value in given.items()}
    every = {name: value[:1].expand(2, *value.shape[1:]) for name, value in given.items()}
    noise = embeds(2, 4, 8, 8)
    assert torch.equal(flow()(model, noise, one).latents, flow()(model, noise, every).latents)
    guided = flow(guidance_scale=3.0)
    mixed = guided(model, noise, given, {name: -value for name, value in one.items()})
    expected = guided(model, noise, given, {name: -value for name, value in every.items()})
    assert torch.equal(mixed.latents, expected.latents)


@pytest.mark.parametrize("gather", [True, False])
def test_halves_of_other_lengths_are_called_one_after_the_other(gather):
    """Against one call of both halves, of which the padding is masked away by weights of zero."""
    calls = []

    class Net(torch.nn.Module):
        def forward(self, x, timestep, words, weight):
            calls.append((len(x), words.shape[1]))
            mean = (words * weight[..., None]).sum(1)
            return torch.tanh(x + mean[:, :, None] * timestep[:, None, None] / 1000)

    noise, model = embeds(3, 2, 5), Net()
    long, short = embeds(3, 7, 2), embeds(3, 4, 2) + 1
    conditioning = {"words": long, "weight": torch.ones(3, 7)}
    padded = torch.cat([short, torch.zeros(3, 3, 2)], dim=1)
    mask = torch.tensor([1.0] * 4 + [0.0] * 3).expand(3, 7)
    together = flow(guidance_scale=3.0)(
        model, noise, conditioning, {"words": padded, "weight": mask}
    )
    assert {rows for rows, _ in calls} <= {2, 4, 6}
    calls.clear()
    unconditional = {"words": short, "weight": torch.ones(3, 4)}
    apart = flow(guidance_scale=3.0, guidance_calls="separate")(
        model, noise, conditioning, unconditional, gather=gather
    )
    assert calls[::2] == [(rows, 4) for rows, _ in calls[1::2]] and {n for _, n in calls} == {4, 7}
    assert gather or {rows for rows, _ in calls} == {3}
    assert torch.equal(apart.nfe, together.nfe)
    assert (apart.latents - together.latents).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"shape and dtype .*guidance_calls='separate' calls the"):
        flow(guidance_scale=3.0)(model, noise, conditioning, unconditional)


def test_bad_guidance_calls_are_named():
    with pytest.raises(
        ValueError, match=r"guidance_calls must be one of 'batched', 'separate', got"
    ):
        flow(guidance_calls="both")
    with pytest.raises(ValueError, match="unconditional must be given"):
        flow(guidance_calls="separate", guidance_scale=2.0)(
            lambda x, t: x, embeds(2, 4, 8, 8), gather=False
        )


def test_what_has_no_rows_is_told_where_it_belongs():
    model, given = sd3()
    with pytest.raises(ValueError, match=r"one row per sample.*denoiser\(model, name=value\)"):
        flow()(model, embeds(2, 4, 8, 8), {**given, "ids": torch.zeros(5, 3)})
