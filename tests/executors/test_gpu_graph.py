"""On an NVIDIA GPU: the three executors have the same bits, and the loop is one launch."""

import gc

import pytest
import torch

import adaptive_kernels as ak
from tests.support import denoisers, problems
from tests.support.growth import growth

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SHAPE = (4, 16, 16)
RULES = {
    "third_order": ak.AdaptiveConfig.paper(threshold=0.05),
    "released": ak.AdaptiveConfig(0.05, criterion="released"),
    "defect": ak.AdaptiveConfig(0.03, criterion="defect"),
    "every(3)": ak.AdaptiveConfig(criterion="every(3)"),
    "batch": ak.AdaptiveConfig.paper(threshold=0.05, granularity="batch"),
}


@pytest.fixture(autouse=True)
def same_algorithms():
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def make_sampler(executor="graph", config=None, **options):
    return ak.AdaptiveSampler(
        problems.ddim(30), config=config or RULES["defect"], executor=executor, **options
    )


def network(kind=denoisers.UNet, dtype=torch.float32, **options):
    return denoisers.made(kind, **options).to(DEVICE, dtype)


def noise(batch=2, seed=0, shape=SHAPE):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=g).to(DEVICE)


def assert_same(one, other):
    for name in ("latents", "nfe", "refreshed", "score"):
        a, b = getattr(one, name), getattr(other, name)
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), name


def run(sampler, model, x, **call):
    return sampler(model, x, progress=False, gather=False, **call)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["UNet", "DiT", "compiled", "bfloat16"])
def test_three_executors_have_the_same_bits(kind, rule):
    torch.compiler.reset()
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = network(denoisers.DiT if kind == "DiT" else denoisers.UNet, dtype)
    if kind == "compiled":
        model = torch.compile(model)
    labels = {"label": torch.arange(3, device=DEVICE)} if kind != "DiT" else {}
    null = {"label": torch.full((3,), 9, device=DEVICE)} if kind != "DiT" else {}
    results = {
        name: run(
            make_sampler(name, RULES[rule], guidance_scale=3.0),
            model,
            noise(3),
            conditioning=labels,
            unconditional=null,
        )
        for name in ("eager", "groups", "graph")
    }
    for name, result in results.items():
        assert result.executor == name
        assert_same(results["eager"], result)
    if rule != "batch":
        assert int(results["eager"].nfe.max()) < 30


@pytest.mark.parametrize("rule", ["third_order", "defect"])
def test_a_sample_that_fills_the_gpu_has_the_same_bits_in_a_loop(rule):
    """Its kernels keep pieces in shared memory, more than a launch is given unasked."""

    def model(x, timestep):
        return torch.tanh(x) * 0.5

    x = noise(1, shape=(16, 512, 512))
    names = ("eager", "groups", "graph")
    results = [run(make_sampler(name, RULES[rule]), model, x) for name in names]
    assert [result.executor for result in results] == [*names]
    for result in results[1:]:
        assert_same(results[0], result)


def test_auto_takes_the_graph_and_says_so():
    result = run(make_sampler("auto"), network(), noise())
    assert result.executor == "graph", result.executor_why


def test_one_launch_and_no_synchronisation():
    sampler, model, x = make_sampler(), network(), noise()
    run(sampler, model, x)
    built = sampler.prepared().built["graph"]
    quiet = type("Bar", (), {"disable": True})()
    built.network.state.reset(sampler.start(model, x))
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        torch.cuda.set_sync_debug_mode("error")
        try:
            built.run(quiet)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    # A launch through the driver is not in every profiler's trace; a second one of any kind is.
    assert sum("Launch" in name for name in names) <= 1, names
    assert not [n for n in names if n in ("cudaStreamSynchronize", "cudaMemcpy", "cudaMalloc")]
    assert built.network.state.index.tolist() == [30, 30]


def test_thresholds_zero_and_infinity_without_a_new_capture():
    sampler, model, x = (
        make_sampler(config=ak.AdaptiveConfig.paper(threshold=0.3, max_skip=4)),
        network(),
        noise(),
    )
    assert run(sampler, model, x, threshold=0.0).nfe.tolist() == [30, 30]
    # Three calls first, then every fifth step.
    assert run(sampler, model, x, threshold=torch.inf).nfe.tolist() == [8, 8]
    mixed = run(sampler, model, x, threshold=torch.tensor([0.0, torch.inf], device=DEVICE))
    assert mixed.nfe.tolist() == [30, 8]
    assert sampler.report()["captures"] == 1


def test_conditioning_guidance_and_seeds_are_replaced_without_a_new_capture():
    model, x = network(), noise()
    with (
        make_sampler(guidance_scale=2.0) as sampler,
        make_sampler("eager", guidance_scale=2.0) as plain,
    ):
        for label, scale in ((1, 2.0), (2, 5.0), (3, torch.tensor([1.5, 6.0]))):
            call = {
                "conditioning": {"label": torch.full((2,), label, device=DEVICE)},
                "unconditional": {"label": torch.full((2,), 9, device=DEVICE)},
                "guidance_scale": scale,
            }
            assert_same(run(plain, model, x, **call), run(sampler, model, x, **call))
        assert sampler.report()["captures"] == 1


def test_a_thousand_launches_do_not_grow():
    """Neither torch's own memory nor, beside it, the driver's, which other processes share."""
    sampler, model, x = make_sampler(), network(), noise(1)
    results = [run(sampler, model, x)]

    def launches():
        for _ in range(250):
            results[1:] = [run(sampler, model, x)]
        gc.collect()
        torch.cuda.synchronize()

    def used():
        free, total = torch.cuda.mem_get_info()
        return total - free

    launches()
    reserved = torch.cuda.memory_reserved()
    # The driver takes 2 MB at a time: 8 kB a launch.
    assert growth(launches, used) < 2 << 20
    assert torch.cuda.memory_reserved() <= reserved
    assert_same(*results)


def test_other_shapes_capture_again_and_free_the_old_buffers():
    sampler, model = make_sampler(), network()
    run(sampler, model, noise(16, shape=(4, 64, 64)))
    large = sampler.report()["memory"]
    allocated = torch.cuda.memory_allocated()
    run(sampler, model, noise(1))
    small = sampler.report()
    assert small["captures"] == 2
    assert 0 < small["memory"]["activations"] < large["activations"]
    assert torch.cuda.memory_allocated() < allocated
    held = torch.cuda.memory_allocated()
    sampler.close()
    gc.collect()
    assert sampler.report()["memory"] == {"activations": 0, "buffers": 0}
    assert torch.cuda.memory_allocated() < held
    run(sampler, model, noise(1))


def test_several_samplers_and_another_network_between():
    models = [network(seed=1), network(denoisers.DiT, seed=2)]
    expected = [run(make_sampler("eager"), model, noise()) for model in models]
    samplers = [make_sampler(), make_sampler()]
    for _ in range(3):
        for one, model, right in zip(samplers, models, expected, strict=True):
            assert_same(right, run(one, model, noise()))
            torch.randn(512, 512, device=DEVICE) @ torch.randn(512, 512, device=DEVICE)
    for model, right in zip(models * 2, expected * 2, strict=True):
        assert_same(right, run(samplers[0], model, noise()))


@pytest.mark.parametrize("executor", ["graph", "groups"])
@pytest.mark.parametrize("shared", [True, False])
def test_two_threads(executor, shared):
    models = [network(seed=1), network(seed=2)]
    expected = [run(make_sampler("eager"), model, noise(seed=k)) for k, model in enumerate(models)]
    one = make_sampler(executor)
    samplers = [one, one if shared else make_sampler(executor)]

    def work(k):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(5):
                assert_same(expected[k], run(samplers[k], models[k], noise(seed=k)))

    problems.together(lambda: work(0), lambda: work(1))


class Moody(denoisers.UNet):
    """Does something that no graph can hold, always or only while it is captured."""

    def __init__(self, what, only_captured=False):
        super().__init__()
        self.what, self.only_captured = what, only_captured

    def forward(self, x, timestep, label=None):
        if torch.cuda.is_current_stream_capturing() or not self.only_captured:
            x = self.what(x, timestep)
        return super().forward(x, timestep)


MOODS = {
    "item": lambda x, t: x * (0.5 if t.max().item() > 500 else 1.0),
    "random": lambda x, t: x + 0 * torch.randn_like(x),
    "copy": lambda x, t: x + t.cpu().to(x).mean() * 0,
    "constant": lambda x, t: x * torch.tensor(1.0, device=x.device),
    "raises": lambda x, t: (_ for _ in ()).throw(ValueError("a bad mood")),
}


@pytest.mark.parametrize(
    ("mood", "only_captured"),
    # A capture takes random numbers in; they are seen while the network is warmed up.
    [(m, c) for m in MOODS for c in (False, True) if (m, c) != ("random", True)],
)
def test_what_no_graph_can_hold_is_refused_and_leaves_torch_usable(mood, only_captured):
    torch.manual_seed(0)
    model = Moody(MOODS[mood], only_captured).eval().requires_grad_(False).to(DEVICE)
    with pytest.raises(ak.CaptureError, match=r"test_gpu_graph\.py:\d+"):
        run(make_sampler(), model, noise())
    torch.manual_seed(1)
    a = torch.randn(64, 64, device=DEVICE)
    torch.manual_seed(1)
    assert torch.equal(a, torch.randn(64, 64, device=DEVICE))
    assert torch.isfinite(a @ a).all()
    torch.cuda.synchronize()
    good = network()
    assert_same(run(make_sampler("eager"), good, noise()), run(make_sampler(), good, noise()))
    if mood == "raises" and not only_captured:
        with pytest.raises(ValueError, match="a bad mood"):
            run(make_sampler("auto"), model, noise())
    else:
        result = run(make_sampler("auto"), model, noise())
        assert result.executor == "eager" and "not graph" in result.executor_why


def test_the_bar_comes_to_its_end(capsys):
    sampler, model = make_sampler(), network()
    for _ in range(2):
        sampler(model, noise(), gather=False)
    assert "60/60" in capsys.readouterr().err


def test_nan_is_reported():
    model = network()
    model.leave.bias.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match="NaN or Inf"):
        result = run(make_sampler(), model, noise())
    assert result.nonfinite.tolist() == [True, True]


def test_moved_parameters_are_captured_again():
    sampler, model = make_sampler(), network(seed=1)
    run(sampler, model, noise())
    other = network(seed=2)
    model.load_state_dict(other.state_dict(), assign=True)
    assert_same(run(make_sampler("eager"), other, noise()), run(sampler, model, noise()))
    assert sampler.report()["captures"] == 2


class ByName(torch.nn.Module):
    """Its timestep stands last, and something is the same for all rows."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, hidden_states, label, offset, timestep):
        return self.inner(hidden_states, timestep, label=label) + offset


def test_halves_one_by_one_and_a_denoiser_are_captured():
    model = ak.denoiser(ByName(), offset=torch.full((1,), 0.01, device=DEVICE))
    samplers = {
        name: make_sampler(name, guidance_scale=3.0, guidance_calls="separate")
        for name in ("eager", "groups", "graph")
    }
    for first in (0, 4):
        label = {"label": torch.arange(first, first + 3, device=DEVICE)}
        null = {"label": torch.full((1,), 9, device=DEVICE)}
        results = [
            run(s, model, noise(3), conditioning=label, unconditional=null)
            for s in samplers.values()
        ]
        for result in results[1:]:
            assert_same(results[0], result)
    assert samplers["graph"].report()["captures"] == 1


def test_latents_that_a_callback_returns_on_a_gpu():
    model, x = network(), noise()
    plain = run(make_sampler("eager"), model, x)
    same = run(make_sampler("auto"), model, x, callback=lambda info: info.latents())
    assert same.executor == "eager" and torch.equal(plain.latents, same.latents)
    edited = run(make_sampler("auto"), model, x, callback=lambda info: info.noised(x, x))
    levels = problems.ddim(30).levels
    assert torch.equal(edited.latents, float(levels.alpha[-1]) * x + float(levels.sigma[-1]) * x)


def test_a_generator_of_either_side_draws_for_a_graph():
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
    model, x = network(), noise()
    noisy = ak.AdaptiveSampler(diffusers.EulerAncestralDiscreteScheduler(), 8, executor="graph")
    drawn = [
        run(noisy, model, x, generator=torch.Generator(device).manual_seed(3)).latents
        for device in ("cpu", "cpu", DEVICE)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_buffers_on_a_gpu_carry_no_graph():
    model = network().requires_grad_(True)
    state = make_sampler().begin(model, noise())
    for _ in range(4):
        x = state.model_input.view(2, *SHAPE)
        state.model_output.copy_(model(x, state.timestep).flatten(1))
        state.advance()
        assert not any(t.requires_grad for t in problems.tensors(state).values())
