"""Where a run begins and from what: as the pipelines of the scheduler do."""

import inspect
from types import SimpleNamespace

import diffusers
import pytest
import torch

from adaptive_kernels import AdaptiveConfig, AdaptiveSampler
from adaptive_kernels.solvers.table import SolverTable
from tests.support.schedulers import CASE, CASES, FixedNoise, loop, prepare

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

U = 2.0**-24  # unit roundoff of float32
DOWN = [
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "WanVideoToVideoPipeline",
]
UP = [
    *("FluxImg2ImgPipeline", "StableDiffusion3Img2ImgPipeline", "QwenImageImg2ImgPipeline"),
    *("ZImageImg2ImgPipeline", "ChromaImg2ImgPipeline", "SanaSprintImg2ImgPipeline"),
]


@pytest.mark.parametrize("pipeline", DOWN + UP)
def test_strength_is_rounded_as_the_pipelines_round_it(pipeline):
    """Their own get_timesteps(), over shares of steps that are whole, nearly whole and neither."""
    kind = getattr(diffusers, pipeline)
    case = CASE["euler" if pipeline in DOWN[:2] else "flow-euler"]
    rounding = "down" if pipeline in DOWN else "up"
    differ = 0
    for steps in (4, 10, 28):
        scheduler = case.make()
        scheduler.set_timesteps(steps)
        pipe = SimpleNamespace(scheduler=scheduler)
        for strength in (0.29, 0.5, 0.55, 0.57, 0.6, 0.7, 0.9, 1.0):
            given = {
                "num_inference_steps": steps,
                "timesteps": scheduler.timesteps,
                "strength": strength,
                "device": "cpu",
            }
            taken = inspect.signature(kind.get_timesteps).parameters
            args = [value for name, value in given.items() if name in taken]
            theirs = kind.get_timesteps(pipe, *args)[0]
            table = SolverTable.from_scheduler(
                case.make(), steps, strength=strength, strength_rounding=rounding
            )
            assert torch.equal(table.timesteps, theirs)
            assert table.needs_latents == (strength < 1)
            other = {"down": "up", "up": "down"}[rounding]
            differ += SolverTable.from_scheduler(
                case.make(), steps, strength=strength, strength_rounding=other
            ).num_steps != len(theirs)
    assert differ


def test_strength_without_a_rounding_is_rounded_down():
    count = SolverTable.from_scheduler(CASE["flow-euler"].make(), 28, strength=0.6).num_steps
    assert count == 16


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_a_schedulers_own_strength_is_reached(name):
    """LCM's pipelines hand it to set_timesteps(), which spaces the steps over what is left."""
    scheduler = CASE[name].make()
    scheduler.set_timesteps(4, strength=0.5)
    table = SolverTable.from_scheduler(CASE[name].make(), 4, strength=0.5)
    assert table.timesteps.tolist() == scheduler.timesteps.tolist() == [499, 379, 259, 139]
    assert table.needs_latents and not table.begin
    cut = SolverTable.from_scheduler(CASE[name].make(), 4, strength=0.5, strength_rounding="down")
    assert cut.timesteps.tolist() == [499, 259] and cut.needs_latents and cut.begin == 2
    with pytest.raises(ValueError, match=r"latents must be given.* was made with a strength"):
        AdaptiveSampler(table)(lambda x, t: x, torch.randn(1, 4), progress=False)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"strength": 0.5, "strength_rounding": "nearest"},
            "must be 'down' or 'up', got 'nearest'",
        ),
        ({"strength_rounding": "up"}, "strength_rounding needs a strength, got 'up' without one"),
        ({"strength": True}, r"strength must be in \(0, 1\], got True"),
        ({"strength": "0.5"}, r"strength must be in \(0, 1\], got '0.5'"),
        ({"strength": float("nan")}, r"strength must be in \(0, 1\], got nan"),
        ({"strength": 0.05, "strength_rounding": "down"}, "strength must leave a step to run"),
    ],
)
def test_bad_strengths_are_refused(kwargs, message):
    for name in ("ddim", "lcm"):
        with pytest.raises(ValueError, match=message):
            SolverTable.from_scheduler(CASE[name].make(), 10, **kwargs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_latents_begin_as_the_scheduler_noises_them(case):
    """add_noise() or scale_noise(), or the levels of its own schedule."""
    stages = getattr(case.make(), "order", 1)
    table = SolverTable.from_scheduler(
        case.make(), 10, strength=0.6, strength_rounding="down", **case.kwargs
    )
    scheduler, timesteps = prepare(case, 10, 4 * stages)
    clean, noise = torch.randn(2, 1, 1, 8, 1, generator=torch.Generator().manual_seed(0))
    a, b = table.start
    if case.id == "ddim-inverse":
        product = scheduler.alphas_cumprod[scheduler.timesteps[3]]
        theirs = product.sqrt() * clean + (1 - product).sqrt() * noise
    elif hasattr(scheduler, "add_noise"):
        theirs = scheduler.add_noise(clean, noise, timesteps[:1])
    elif hasattr(scheduler, "scale_noise"):
        theirs = scheduler.scale_noise(clean, timesteps[:1], noise)
    else:
        assert case.id == "helios"
        sigma = scheduler.sigmas[4]
        theirs = (1 - sigma) * clean + sigma * noise
    ours = a * clean.double() + b * noise.double()
    # Weights take up to four float32 roundings, products and sum three; 1 - alphas_cumprod may
    # double its own.
    bound = 8 * U * (abs(a) * clean.abs() + abs(b) * noise.abs())
    assert ((theirs - ours).abs() <= bound).all()


def test_latents_are_refused_where_their_level_is_not_known():
    """IPNDM: no add_noise(), and its first step loses what its levels say."""
    sampler = AdaptiveSampler(diffusers.IPNDMScheduler(), 10, AdaptiveConfig.paper())
    image = torch.randn(1, 4)
    with pytest.raises(ValueError, match=r"latents must be None for .*how much noise they need"):
        sampler(lambda x, t: x, torch.randn(1, 4), latents=image, progress=False)
    # Further down its levels fit.
    table = SolverTable.from_scheduler(diffusers.IPNDMScheduler(), 10, begin_index=4)
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(10)
    assert table.start == pytest.approx((scheduler.alphas[4].item(), scheduler.betas[4].item()))


def gaussian(levels_of):
    """The exact noise prediction for data N(0, 1/4), by timestep: [B, ...], [B] -> [B, ...]."""

    def model(x, t):
        alpha, sigma = levels_of(t)
        shape = (-1, *(1,) * (x.dim() - 1))
        alpha, sigma = alpha.reshape(shape), sigma.reshape(shape)
        return sigma * x / (0.25 * alpha.square() + sigma.square())

    return model


@pytest.mark.parametrize("inverse", ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"])
def test_an_image_is_inverted_and_comes_back(inverse):
    """From the clean latents as they are, by bare step()s and by the sampler; and back again."""
    clip = {"clip_sample": False} if inverse[:4] == "DDIM" else {}
    up = getattr(diffusers, inverse)(**clip)
    down = getattr(diffusers, inverse.replace("Inverse", ""))(**clip)
    products = down.alphas_cumprod.double()
    model = gaussian(lambda t: (products[t].sqrt().float(), (1 - products[t]).sqrt().float()))
    image = 0.5 * torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    config = AdaptiveConfig(criterion="never")
    ours = AdaptiveSampler(up, 100, config)(
        model, torch.full_like(image, 9.0), latents=image, progress=False
    )
    up.set_timesteps(100)
    row = torch.ones(len(image), dtype=torch.int64)
    theirs = loop(
        *(up, up.timesteps, lambda x, t: model(x, t * row)),
        *(image, torch.zeros(100, *image.shape), {}),
    )[-1]
    assert (ours.latents - theirs).norm() < 1e-4 * theirs.norm()
    table = SolverTable.from_scheduler(up, 10)
    assert table.start == (1.0, 0.0) and table.needs_latents and table.levels.rising
    with pytest.raises(ValueError, match=r"latents must be given.* leads from an image to noise"):
        AdaptiveSampler(table)(model, image, progress=False)
    # Noise of about unit spread, of which the solver makes the image again.
    assert 0.7 < float(ours.latents.std()) < 1.1
    back = AdaptiveSampler(down, 100, config)(model, ours.latents, progress=False)
    assert (back.latents - image).norm() < 0.05 * image.norm()
    # The recommended rule knows its levels and saves calls on the way up too.
    fewer = AdaptiveSampler(up, 100, AdaptiveConfig.recommended())(
        model, torch.zeros_like(image), latents=image, progress=False
    )
    assert int(fewer.nfe.max()) < 90
    assert (fewer.latents - theirs).norm() < 0.02 * theirs.norm()


def test_inverted_sigmas_are_the_share_of_the_image():
    """Mochi's: its sigmas rise from 0, where the latents are noise, and it needs no image."""
    table = SolverTable.from_scheduler(
        diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 10
    )
    assert table.start == (0.0, 1.0) and not table.needs_latents and not table.levels.rising
    assert (table.levels.alpha.diff() > 0).all()
    middle = SolverTable.from_scheduler(
        diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 10, begin_index=4
    )
    levels = middle.levels
    assert middle.start == pytest.approx((levels.alpha[0].item(), levels.sigma[0].item()))


def test_noise_is_drawn_by_the_sampler_where_a_path_was():
    """CosineDPM, Stable Audio's: a Brownian path's increments are independent normals."""
    case = CASE["cosine-dpm"]
    noise = torch.randn(11, 2, 4, 6, generator=torch.Generator().manual_seed(2))
    ours = AdaptiveSampler(case.make(), 10, AdaptiveConfig(criterion="never"))(
        lambda x, t: 0.1 * x, noise[0], step_noise=noise[1:], progress=False
    )
    scheduler, timesteps = prepare(case, 10)
    theirs = loop(
        *(scheduler, timesteps, lambda x, t: 0.1 * x),
        *(noise[0] * scheduler.init_noise_sigma, noise[1:], {}),
    )[-1]
    assert (ours.latents - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize(
    ("name", "config", "kwargs"),
    [
        ("IPNDMScheduler", {}, {}),
        ("LTXEulerAncestralRFScheduler", {}, {}),
        ("MiniMaxH3Scheduler", {}, {}),
        ("DDPMWuerstchenScheduler", {}, {}),
        ("SCMScheduler", {}, {"intermediate_timesteps": None}),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned_range"}, {}),
        ("SASolverScheduler", {"tau_func": lambda t: 0.0, "predictor_order": 4}, {}),
    ],
)
def test_the_rarer_schedulers_run_as_their_own_steps(name, config, kwargs):
    """In float64, with a timestep for every row or without a step at the last level."""
    steps = 10
    scheduler = getattr(diffusers, name)(**config)
    table = SolverTable.from_scheduler(scheduler, steps, **kwargs)
    scheduler.set_timesteps(steps, **kwargs)
    x, *rest = torch.randn(
        1 + 2 * table.num_steps, 2, 2, 4, 3, dtype=torch.float64, generator=torch.Generator()
    )
    m, z = torch.stack(rest).split(table.num_steps)
    ours, kept = [x], []
    theirs = [x]
    with FixedNoise(z) as noise:
        for i, t in enumerate(table.timesteps):
            noise.at = i
            at = t.expand(len(x)) if name == "DDPMWuerstchenScheduler" else t
            theirs.append(scheduler.step(m[i], at, theirs[-1], return_dict=False)[0])
            kept.insert(0, table.p[i] * ours[-1] + table.q[i] * m[i])
            own = table.A[i] * ours[-1] + table.S[i] * z[i]
            ours.append(own + sum(c * h for c, h in zip(table.C[i], kept, strict=False)))
    ours, theirs = torch.stack(ours), torch.stack(theirs).double()
    # Those that cast on the way round to float32 there.
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()
    assert table.num_steps == (9 if name == "MiniMaxH3Scheduler" else 10)
