"""A config knows the solver and the network that it was found on, and warns with others."""

import copy
import pickle
import warnings

import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.rules.origin import Origin
from tests.support import problems
from tests.support.pipelines import image
from tests.support.schedulers import CASE

STEPS = 8


def network(seed=0, width=4):
    torch.manual_seed(seed)

    class Net(torch.nn.Sequential):
        def forward(self, x, timestep):
            return torch.tanh(super().forward(x))

    inner = torch.nn.Conv2d(2, width, 3, padding=1), torch.nn.Conv2d(width, 2, 3, padding=1)
    return Net(*inner).requires_grad_(False)


def config(model, solver="ddim", steps=STEPS):
    table = ak.SolverTable.from_scheduler(CASE[solver].make(), steps)
    return ak.AdaptiveConfig(0.05, origin=Origin.of(table, model))


def noise(batch=2):
    return torch.randn(batch, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [w for w in caught if "config was found on" in str(w.message)]


def sampler(own, solver="ddim", steps=STEPS, **options):
    return ak.AdaptiveSampler(CASE[solver].make(), steps, own, progress=False, **options)


def test_the_same_network_is_the_same_whatever_is_around_it():
    model = network()
    origin = config(model).origin
    for other in (
        model,
        copy.deepcopy(model).half(),
        copy.deepcopy(model).bfloat16(),
        torch.compile(model, backend="eager"),
        ak.denoiser(model),
        lambda x, t: x,
        copy.deepcopy(model).to("meta"),
    ):
        assert origin.other_network([other]) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: network(seed=1), r"a network of as many parameters \(\d+\) and other weights"),
        (lambda: network(width=5), r"a network of \d+ parameters \(here \d+\)"),
    ],
)
def test_another_network_is_told_once(other, said):
    own = config(network())
    one, model = sampler(own), other()
    found = told(lambda: [one(model, noise()) for _ in range(3)])
    assert len(found) == 1 and found[0].filename == __file__
    with pytest.warns(RuntimeWarning, match=f"config was found on {said}.*calibrate"):
        sampler(own)(model, noise())
    # Back to its own, and to the other one again, which is known by now.
    assert not told(lambda: [one(network(), noise()), one(model, noise())])


def test_what_only_looks_like_another_network_is_not_told():
    """8-bit storage rounds the weights, and fused projections are copies of others."""
    unet = image.sd().unet
    origin = Origin.of(problems.ddim(STEPS), unet)
    fused = copy.deepcopy(unet)
    fused.fuse_qkv_projections()
    assert sum(p.numel() for p in fused.parameters()) > sum(p.numel() for p in unet.parameters())
    cast = copy.deepcopy(unet)
    cast.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    for other in (fused, cast, fused.half()):
        assert origin.other_network([other]) == []
    assert origin.other_network([image.sdxl().unet])


def test_its_own_network_and_functions_are_not_told():
    model = network()
    one = sampler(config(model))
    assert not told(lambda: one(model, noise()))
    assert not told(lambda: one(lambda x, t: model(x, t), noise()))
    again = pickle.loads(pickle.dumps(one))
    assert not told(lambda: again(model, noise()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 10}, r"8 steps \(here 10 steps\)"),
        ({"solver": "dpm-2m"}, r"DDIMScheduler \(here DPMSolverMultistepScheduler\)"),
        ({"solver": "ddim-v"}, r"epsilon prediction \(here v_prediction prediction\)"),
    ],
)
def test_another_solver_is_told_where_a_sampler_is_made(options, said):
    own = config(network())
    with pytest.warns(RuntimeWarning, match=f"config was found on {said}"):
        sampler(own, **options)
    assert not told(lambda: sampler(own))
    # Image to image runs the last rows of the same schedule.
    assert not told(lambda: sampler(own, strength=0.5))


def test_an_engine_and_a_pipeline_tell_it_too():
    own = config(network())
    with pytest.warns(RuntimeWarning, match="config was found on a network of"):
        ak.Engine(network(width=3), CASE["ddim"].make(), STEPS, shape=(2, 6, 6), config=own)
    pipe = image.sd()
    for other, differs in ((network(), True), (pipe.unet, False)):
        table = ak.SolverTable.from_scheduler(pipe.scheduler, STEPS)
        found = ak.AdaptiveConfig(0.05, origin=Origin.of(table, other))
        with ak.adaptive(pipe, found), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe("a ball", num_inference_steps=STEPS, output_type="latent")
            notes = ak.summary(pipe, as_dict=True)["last"]["samplings"][-1]["notes"]
        assert any("config was found on a network" in note for note in notes) == differs


def test_what_calibrate_finds_knows_its_origin(tmp_path):
    model = network()
    found = ak.calibrate(
        model,
        CASE["ddim"].make(),
        STEPS,
        noise=noise(8),
        calls=4,
        trials=1,
        curve=[],
        out=tmp_path,
        progress=False,
    )
    table = ak.SolverTable.from_scheduler(CASE["ddim"].make(), STEPS)
    assert found.origin == Origin.of(table, model)
    assert found == ak.load_config(tmp_path / "config.json")
    assert repr(found.origin) == "Origin(DDIMScheduler: 8 steps, epsilon, 150 parameters)"
    assert "\n" not in repr(found)


def test_presets_are_the_shipped_models():
    from adaptive_kernels.demo.model import demo_scheduler, load_demo_model

    table, model = ak.SolverTable.from_scheduler(demo_scheduler(), 50), load_demo_model()
    for name in ak.presets():
        origin = ak.load_config(name).origin
        assert origin == Origin.of(table, model)
        assert origin.other_network([network()])


def test_nothing_is_said_of_what_is_not_known():
    table = problems.ddim(STEPS)
    assert Origin().other_solver(table) == [] == Origin().other_network([network()])
    assert Origin.of(table, lambda x, t: x).parameters is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheduler": 3}, "origin.scheduler must be str or None, got 3"),
        ({"parameters": 1.5}, "origin.parameters must be int or None, got 1.5"),
        ({"weights": ["a"]}, "origin.weights must be numbers"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(TypeError, match=message):
        Origin(**fields)
    with pytest.raises(TypeError, match="origin must be an Origin, got dict"):
        ak.AdaptiveConfig(origin=fields)
