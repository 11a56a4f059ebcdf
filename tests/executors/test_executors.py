"""The three executors: one result, one capture for many calls, clear refusals, nothing left behind.

Without a GPU: captures are kept and done again by a driver that stands in (fake_runtime.py); the
loop is built by the real module. test_gpu_graph.py makes the same claims of the device.
"""

import copy
import gc
import pickle
import threading
import time
import weakref

import pytest
import torch

import adaptive_kernels as ak
from tests.support import denoisers, problems
from tests.support.driver import fake_runtime
from tests.support.emulation import emulated

RULES = {
    "third_order": ak.AdaptiveConfig.paper(threshold=0.05),
    "released": ak.AdaptiveConfig(0.05, criterion="released"),
    "defect": ak.AdaptiveConfig(0.03, criterion="defect"),
    "never": ak.AdaptiveConfig(criterion="never"),
    "every(3)": ak.AdaptiveConfig(criterion="every(3)"),
    "batch": ak.AdaptiveConfig.paper(threshold=0.05, granularity="batch"),
}
STEPS = 24


@pytest.fixture
def runtimes(monkeypatch):
    return fake_runtime.install(monkeypatch)


def make_sampler(executor="graph", config=None, table=None, **options):
    return ak.AdaptiveSampler(
        table or problems.ddim(STEPS),
        config=config or RULES["defect"],
        executor=executor,
        **options,
    )


def noise(batch=2, seed=0, shape=(4, 8, 8)):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def run(sampler, model, x, **call):
    return sampler(model, x, progress=False, gather=False, **call)


def assert_same(one, other):
    for name in ("latents", "nfe", "refreshed", "score", "nonfinite"):
        a, b = getattr(one, name), getattr(other, name)
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)), name


def labels(*values):
    return {"label": torch.tensor(values)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [denoisers.UNet, denoisers.DiT])
def test_one_result(runtimes, kind, rule):
    model, x = denoisers.made(kind), noise(3)
    call = {}
    if kind is denoisers.UNet:
        call = {"conditioning": labels(1, 2, 3), "unconditional": labels(9, 9, 9)}
    scale = {"guidance_scale": 3.0} if call else {}
    results = [
        run(make_sampler(name, RULES[rule], **scale), model, x, **call)
        for name in ("eager", "groups", "graph", "auto")
    ]
    assert [r.executor for r in results] == ["eager", "groups", "graph", "graph"]
    for result in results[1:]:
        assert_same(results[0], result)
    groups, graph = runtimes[0], runtimes[1]
    ticks = int(results[0].nfe.max())
    # The network and `advance` once per tick, and not once more; the loop in one launch.
    assert (groups.replays, groups.launches) == (2 * ticks, 0)
    assert (graph.replays, graph.launches) == (0, 1)


class ByName(torch.nn.Module):
    """Its timestep stands last, and something is the same for all rows."""

    def __init__(self):
        super().__init__()
        self.inner = denoisers.made(denoisers.UNet)

    def forward(self, hidden_states, label, offset, timestep):
        return self.inner(hidden_states, timestep, label=label) + offset


def test_halves_one_by_one_and_a_denoiser_are_captured_once(runtimes):
    """The same bits by every executor; a capture serves other conditioning, no other offset."""
    x, offset = noise(3), torch.full((1,), 0.01)
    model, config = ak.denoiser(ByName(), offset=offset), RULES["defect"]
    eager, groups, graph = (
        make_sampler(name, config, guidance_scale=3.0, guidance_calls="separate")
        for name in ("eager", "groups", "graph")
    )
    for own in (labels(1, 2, 3), labels(4, 5, 6)):
        given = {"conditioning": own, "unconditional": labels(9)}
        results = [run(sampler, model, x, **given) for sampler in (eager, groups, graph)]
        assert_same(results[0], results[1])
        assert_same(results[0], results[2])
        assert int(results[0].nfe.max()) < len(results[0].refreshed)
    together = make_sampler("eager", config, guidance_scale=3.0)
    whole = run(together, model, x, **given)
    assert (whole.latents - results[0].latents).abs().max() < 1e-4
    assert graph.report()["captures"] == groups.report()["captures"] == 1
    run(graph, ak.denoiser(model.model, offset=offset + 1), x, **given)
    assert graph.report()["captures"] == 2


@pytest.mark.parametrize("rule", ["third_order", "defect", "batch"])
def test_the_cuda_kernels_end_the_loop_themselves(runtimes, rule):
    """The sources of the kernels, run on the CPU, inside the loop that the real module built."""
    emulated.library()
    runtimes.emulated = emulated
    model, x = denoisers.made(denoisers.UNet), noise(3)
    expected = run(make_sampler("eager", RULES[rule]), model, x)
    result = run(make_sampler("graph", RULES[rule]), model, x)
    assert runtimes[-1].launches == 1
    assert torch.equal(expected.latents, result.latents)
    assert torch.equal(expected.refreshed, result.refreshed)


def test_two_stages_image_to_image_and_solvers_that_add_noise(runtimes):
    x = noise()
    for table in (problems.table(12, 3, 2), problems.table(12, 2, stochastic=True)):
        config = ak.AdaptiveConfig.paper(threshold=3.0, max_skip=2)
        results = [
            run(make_sampler(name, config, table), denoisers.made(denoisers.UNet), x, seed=[5, 3])
            for name in ("eager", "groups", "graph")
        ]
        assert_same(results[0], results[1])
        assert_same(results[0], results[2])
        assert int(results[0].nfe.max()) < 12


def test_one_capture_serves_other_values(runtimes):
    model = denoisers.made(denoisers.UNet)
    plain, sampler = make_sampler("eager", guidance_scale=2.0), make_sampler(guidance_scale=2.0)
    for k, threshold, scale in (
        (0, None, None),
        (1, 0.0, 4.0),
        (2, torch.inf, torch.tensor([1.0, 7.0])),
        (3, torch.tensor([0.0, 0.5]), 2.0),
    ):
        call = {
            "conditioning": labels(k, k + 1),
            "unconditional": labels(9, 8),
            "threshold": threshold,
            "guidance_scale": scale,
        }
        assert_same(
            run(plain, model, noise(seed=k), **call), run(sampler, model, noise(seed=k), **call)
        )
    assert sampler.report()["captures"] == 1 and len(runtimes) == 1


def test_what_the_user_gave_is_not_written_to(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    given = [(noise(seed=k), labels(k, k + 2)) for k in range(2)]
    before = copy.deepcopy(given)
    for x, label in given:
        run(sampler, model, x, conditioning=label)
    for (x, label), (x_before, label_before) in zip(given, before, strict=True):
        assert torch.equal(x, x_before) and torch.equal(label["label"], label_before["label"])


def test_a_launch_comes_after_what_was_read_of_the_last(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    run(sampler, model, noise())
    run(sampler, model, noise())
    sampler.close()
    order = runtimes[-1].order
    words = [word for word, _ in order]
    # Marks: at the end of the launch, and when its results were taken.
    launch = ["launch", "mark", "mark"]
    assert words == ["upload", *launch, "follow", *launch, "wait"]
    marks = [mark for word, mark in order if word == "mark"]
    assert order[4] == ("follow", marks[1]) and order[-1] == ("wait", marks[3])


def test_autocast_and_other_numerics_belong_to_the_capture(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    expected = run(sampler, model, noise())
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(sampler, model, noise())
        assert_same(run(make_sampler("eager"), model, noise()), cast)
    assert not torch.equal(expected.latents, cast.latents) and torch.is_autocast_cache_enabled()
    assert_same(expected, run(sampler, model, noise()))
    torch.backends.cudnn.deterministic ^= True
    try:
        assert_same(expected, run(sampler, model, noise()))
    finally:
        torch.backends.cudnn.deterministic ^= True
    assert sampler.report()["captures"] == 4


def test_casts_are_not_cached_outside_of_a_graph(runtimes):
    seen, model = [], denoisers.made(denoisers.UNet)

    def watched(x, timestep):
        seen.append(torch.is_autocast_cache_enabled())
        return model(x, timestep)

    with torch.autocast("cpu", torch.bfloat16):
        sampler = make_sampler()
        run(sampler, watched, noise())
        # Three calls to warm up and one that is captured; a launch is none of Python's.
        assert seen[:4] == [False] * 4 and torch.is_autocast_cache_enabled()
    seen.clear()
    run(make_sampler(), watched, noise())
    assert seen[:4] == [True] * 4


def test_what_a_model_makes_in_its_first_call_is_no_change(runtimes):
    class Caching(denoisers.UNet):
        made = None

        def forward(self, x, timestep, label=None):
            if self.made is None:
                self.made = 1.0
            return super().forward(x, timestep) * self.made

    sampler, model = make_sampler(), denoisers.made(Caching)
    for _ in range(3):
        run(sampler, model, noise())
    assert sampler.report()["captures"] == 1


def test_compiled_networks_that_draw_random_numbers_are_refused_too(runtimes):
    def compiled(x, timestep):
        return -x + 0 * torch.randn_like(x)

    compiled._torchdynamo_orig_callable = compiled
    with pytest.raises(ak.CaptureError, match="the network draws random numbers, at"):
        run(make_sampler(), compiled, noise())


def test_labels_of_another_dtype_are_captured_again(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    for dtype in (torch.int64, torch.int32):
        run(sampler, model, noise(), conditioning={"label": torch.tensor([1, 2], dtype=dtype)})
    assert sampler.report()["captures"] == 2


def test_out_of_memory_is_not_remembered(runtimes, monkeypatch):
    sampler, model = make_sampler("auto"), denoisers.made(denoisers.UNet)
    full = [True]
    made = fake_runtime.state.State.of

    def of(start, **options):
        if full.pop() if full else False:
            raise torch.OutOfMemoryError("tried to allocate 7 GiB")
        return made(start, **options)

    monkeypatch.setattr(fake_runtime.state.State, "of", of)
    result = run(sampler, model, noise())
    assert result.executor == "eager" and "out of memory: tried" in result.executor_why
    assert run(sampler, model, noise()).executor == "graph"
    full.append(True)
    with pytest.raises(torch.OutOfMemoryError):
        run(make_sampler("graph"), model, noise())


def test_an_old_driver_is_not_asked_for_cooperative_kernels(runtimes, monkeypatch):
    monkeypatch.setattr(fake_runtime.FakeRuntime, "takes_cooperative", False)
    runtimes.driver = fake_runtime.FakeDriver()
    config = ak.AdaptiveConfig.paper(threshold=0.05, max_skip=2)
    model = denoisers.made(denoisers.UNet)
    sampler = make_sampler(config=config)
    assert_same(run(make_sampler("eager", config), model, noise()), run(sampler, model, noise()))
    assert runtimes.driver.plan().count("kernel") == 3


def test_the_error_of_the_network_is_the_cause(runtimes):
    with pytest.raises(ak.CaptureError) as caught:
        run(make_sampler(), moody(bad_mood), noise())
    assert isinstance(caught.value.__cause__, ValueError)


def test_nothing_is_left_after_a_fallback(runtimes):
    """No cycle keeps the buffers: a close frees them without the garbage collector."""
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    runtimes.driver = fake_runtime.FakeDriver()
    runtimes.driver.fail("cuGraphInstantiateWithParams", 1)
    gc.collect()
    gc.disable()
    try:
        run(sampler, model, noise())
        held = weakref.ref(sampler.prepared().built["graph"])
        sampler.close()
        assert held() is None and runtimes[-1].released
    finally:
        gc.enable()


def test_thresholds_zero_and_infinity(runtimes):
    for name in ("eager", "groups", "graph"):
        sampler, model = (
            make_sampler(name, ak.AdaptiveConfig.paper(threshold=0.3, max_skip=4)),
            denoisers.made(denoisers.DiT),
        )
        assert run(sampler, model, noise(), threshold=0.0).nfe.tolist() == [STEPS, STEPS]
        # Three calls, then every fifth step.
        calls = 3 + -(-(STEPS - 3 - 4) // 5)
        assert run(sampler, model, noise(), threshold=torch.inf).nfe.tolist() == [calls, calls]


def test_results_are_not_overwritten_by_the_next_call(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    first = run(sampler, model, noise())
    kept = copy.deepcopy(first)
    run(sampler, model, noise(seed=1), threshold=0.0)
    assert_same(kept, first)


def test_another_shape_model_or_dtype_captures_again_and_frees_the_old_one(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    other = denoisers.made(denoisers.UNet, seed=1)
    calls = [
        (model, noise()),
        (model, noise(3)),
        (other, noise(3)),
        (model, noise(3)),
        (copy.deepcopy(model).bfloat16(), noise(3)),
    ]
    for captures, (network, x) in enumerate(calls, start=1):
        expected = run(make_sampler("eager"), network, x)
        assert_same(expected, run(sampler, network, x))
        assert_same(expected, run(sampler, network, x))
        assert sampler.report()["captures"] == captures
        assert [len(runtime.alive) for runtime in runtimes] == [0] * (captures - 1) + [1]
    sampler.close()
    assert runtimes[-1].alive == [] and runtimes[-1].driver.live()["graphs"] == 0


def test_replaced_parameters_are_captured_again(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    run(sampler, model, noise())
    other = denoisers.made(denoisers.UNet, seed=1)
    model.load_state_dict(other.state_dict(), assign=True)
    assert_same(run(make_sampler("eager"), other, noise()), run(sampler, model, noise()))
    # In place they are where they were.
    model.load_state_dict(denoisers.made(denoisers.UNet, seed=2).state_dict())
    assert_same(run(make_sampler("eager"), model, noise()), run(sampler, model, noise()))
    assert sampler.report()["captures"] == 2


def test_plain_values_and_structure_of_conditioning_belong_to_the_capture(runtimes):
    def model(x, timestep, scale, extra):
        return -x * scale + extra["bias"].view(-1, 1, 1, 1)

    plain, sampler = make_sampler("eager"), make_sampler()
    captures = []
    for scale, bias in ((0.5, 0.1), (0.5, 0.3), (0.25, 0.3)):
        call = {"scale": scale, "extra": {"bias": torch.full((2,), bias)}}
        assert_same(
            run(plain, model, noise(), conditioning=call),
            run(sampler, model, noise(), conditioning=call),
        )
        captures.append(sampler.report()["captures"])
    assert captures == [1, 1, 2]


def test_close_and_context_manager(runtimes):
    model = denoisers.made(denoisers.UNet)
    with make_sampler() as sampler:
        expected = run(sampler, model, noise())
        memory = sampler.report()["memory"]
        assert memory["activations"] == 1000 and memory["buffers"] > 4 * noise().nbytes
    assert sampler.report() == {
        "captures": 1,
        "built": [],
        "memory": {"activations": 0, "buffers": 0},
    }
    sampler.close()
    assert_same(expected, run(sampler, model, noise()))
    driver = runtimes[-1].driver
    assert driver.live()["execs"] == 1
    gone = weakref.ref(sampler)
    del sampler
    gc.collect()
    assert gone() is None and driver.live()["execs"] == driver.live()["graphs"] == 0


def test_copies_and_pickles_capture_for_themselves(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    expected = run(sampler, model, noise())
    for twin in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert twin.report()["captures"] == 0
        assert_same(expected, run(twin, model, noise()))


@pytest.mark.parametrize("executor", ["graph", "groups"])
@pytest.mark.parametrize("shared", [True, False])
def test_two_threads(runtimes, executor, shared):
    models = [denoisers.made(denoisers.UNet, seed=k) for k in range(2)]
    expected = [run(make_sampler("eager"), models[k], noise(seed=k)) for k in range(2)]
    one = make_sampler(executor)
    samplers = [one, one if shared else make_sampler(executor)]

    def work(k):
        for _ in range(3):
            assert_same(expected[k], run(samplers[k], models[k], noise(seed=k)))

    problems.together(lambda: work(0), lambda: work(1))


class Caching(denoisers.UNet):
    """Makes a cache in its first call."""

    def forward(self, x, timestep, label=None):
        self.cache = getattr(self, "cache", 1.0)
        return super().forward(x, timestep) * self.cache


def waiting(sampler, *works):
    """Works in threads of their own that have looked at the model and wait for the captures."""
    arrived, look = threading.Semaphore(0), sampler._executors.look

    def looked():
        arrived.release()
        return look()

    sampler._executors.look = looked
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert arrived.acquire(timeout=60)
    time.sleep(0.3)  # from the look to the captures
    return threads


def test_a_change_while_a_call_waits_for_another_is_seen(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    run(sampler, model, noise())
    with sampler._executors._lock:
        threads = waiting(sampler, lambda: run(sampler, model, noise()))
        model.leave.scale = 2.0
    for thread in threads:
        thread.join(timeout=60)
    assert sampler.report()["captures"] == 2


def test_first_calls_at_a_time_share_one_capture(runtimes):
    sampler, results = make_sampler(), []
    torch.manual_seed(0)
    model = Caching().eval().requires_grad_(False)
    with sampler._executors._lock:
        work = [lambda: results.append(run(sampler, model, noise()))] * 3
        threads = waiting(sampler, *work)
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 3 and sampler.report()["captures"] == 1


def test_a_part_of_the_buffers_can_be_given_back(runtimes):
    """A network that keeps what it was called with hands out the capture's own conditioning."""
    kept = []

    def model(x, timestep, label):
        if all(label is not one for one in kept):
            kept.append(label)
        return 0.5 * x + 0.01 * label[:, None, None, None]

    sampler = make_sampler(guidance_scale=2.0)
    conditions = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])

    def call(own, other):
        return run(
            sampler, model, noise(), conditioning={"label": own}, unconditional={"label": other}
        )

    expected = call(*conditions)
    (buffer,) = kept
    assert buffer.tolist() == [3.0, 4.0, 1.0, 2.0]
    # Halves as they lie there, and the other way round.
    assert_same(expected, call(buffer[2:], buffer[:2]))
    swapped = call(buffer[:2], buffer[2:])
    assert buffer.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert_same(swapped, call(conditions[1], conditions[0]))
    assert sampler.report()["captures"] == 1


class Moody(denoisers.UNet):
    """Does what no graph can hold, from call `since` on."""

    def __init__(self, what, since=0):
        super().__init__()
        self.what, self.since, self.calls = what, since, 0

    def forward(self, x, timestep, label=None):
        self.calls += 1
        return super().forward(self.what(x, timestep) if self.calls > self.since else x, timestep)


def moody(what, since=0):
    torch.manual_seed(0)
    return Moody(what, since).eval().requires_grad_(False)


def bad_mood(x, t):
    raise ValueError("a bad mood")


REFUSED = {
    "item": (lambda x, t: x * (0.5 if t.max().item() > 500 else 1), "synchronises .*_scalar_dense"),
    "random": (lambda x, t: x + 0 * torch.randn_like(x), "draws random numbers"),
    "host": (lambda x, t: x * torch.tensor(1.0), "made from host values"),
    "raises": (bad_mood, "failed while it was warmed up: ValueError: a bad mood"),
}


@pytest.mark.parametrize("executor", ["graph", "groups"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_a_graph_cannot_hold_is_refused_with_its_place(runtimes, executor, what):
    function, message = REFUSED[what]
    sampler = make_sampler(executor)
    with pytest.raises(ak.CaptureError, match=message + r".*, at .*test_executors\.py:\d+ in "):
        run(sampler, moody(function), noise())
    assert runtimes[-1].alive == [] and sampler.report()["captures"] == 0
    good = denoisers.made(denoisers.UNet)
    assert_same(run(make_sampler("eager"), good, noise()), run(sampler, good, noise()))


def test_a_failure_during_the_capture_is_told_apart(runtimes):
    with pytest.raises(ak.CaptureError, match="failed while it was captured: ValueError: a bad"):
        run(make_sampler(), moody(bad_mood, since=3), noise())
    assert runtimes[-1].alive == []


def test_auto_goes_on_with_the_plain_loop_and_says_why(runtimes):
    model, sampler = moody(REFUSED["item"][0]), make_sampler("auto")
    result = run(sampler, model, noise())
    assert result.executor == "eager"
    assert "not graph: the network synchronises" in result.executor_why
    assert_same(run(make_sampler("eager"), model, noise()), result)
    # It is not tried again in vain, neither by the next executor nor by the next call.
    assert len(runtimes) == 1
    run(sampler, model, noise(3))
    assert len(runtimes) == 1
    # Where it is mended, it is.
    dropping = moody(lambda x, t: torch.dropout(x, 0.1, dropping.training))
    assert run(sampler, dropping.train(), noise()).executor == "eager"
    assert run(sampler, dropping.eval(), noise()).executor == "graph"
    assert run(sampler, denoisers.made(denoisers.UNet), noise()).executor == "graph"
    with pytest.raises(ValueError, match="a bad mood"):
        run(sampler, moody(bad_mood), noise())


def test_groups_that_the_driver_refuses_are_refused_before_they_run(runtimes, monkeypatch):
    """As for a process that has a part of the GPU, where not all blocks run at once."""
    monkeypatch.setattr(fake_runtime.FakeRuntime, "takes_graphs", False)
    sampler, model = make_sampler("groups"), denoisers.made(denoisers.UNet)
    with pytest.raises(ak.CaptureError, match="advance could not be captured: too many blocks"):
        run(sampler, model, noise())
    assert runtimes[0].replays == 0
    runtimes.beside = 3  # CU_GRAPH_NODE_TYPE_HOST: no loop takes it either
    result = run(make_sampler("auto"), model, noise())
    assert result.executor == "eager"
    assert "not groups: advance could not be captured: too many blocks" in result.executor_why
    monkeypatch.undo()
    sampler.close()
    assert runtimes[0].alive == []


def test_a_loop_that_the_driver_refuses_leaves_groups(runtimes):
    sampler, model = make_sampler("auto"), denoisers.made(denoisers.UNet)
    runtimes.beside = 3  # CU_GRAPH_NODE_TYPE_HOST
    result = run(sampler, model, noise())
    assert result.executor == "groups"
    why = "not graph: of the captured network, node 1 of 2 is a node of type host callback"
    assert why in result.executor_why
    assert sampler.report()["captures"] == 1 and sampler.report()["built"] == ["groups"]
    with pytest.raises(ak.CaptureError, match="usually from a library that calls back on the CPU"):
        run(make_sampler(), model, noise())
    assert_same(run(make_sampler("eager"), model, noise()), result)


def test_auto_stays_with_what_was_faster(runtimes):
    sampler, model = make_sampler("auto"), denoisers.made(denoisers.UNet)
    results = [run(sampler, model, noise()) for _ in range(6)]
    for result in results[1:]:
        assert_same(results[0], result)
    ran = ["graph", "groups", "graph", "groups", "graph", "graph"]
    assert [result.executor for result in results] == ran
    assert "per network call: graph " in results[-1].executor_why
    assert sampler.report()["built"] == ["graph"] and sampler.report()["captures"] == 1


def test_a_driver_without_cooperative_bodies_gets_step_repeated(runtimes):
    """The second attempt has one kernel per step of the longest run, and the same result."""
    sampler, model = (
        make_sampler(config=ak.AdaptiveConfig.paper(threshold=0.05, max_skip=3)),
        denoisers.made(denoisers.UNet),
    )
    driver = fake_runtime.FakeDriver()
    driver.fail("cuGraphInstantiateWithParams", 1)
    runtimes.driver = driver
    result = run(sampler, model, noise())
    expected = run(
        make_sampler("eager", ak.AdaptiveConfig.paper(threshold=0.05, max_skip=3)), model, noise()
    )
    assert_same(expected, result)
    assert driver.plan().count("kernel") == 4, driver.plan()


def test_what_needs_the_plain_loop(runtimes):
    model, seen = denoisers.made(denoisers.UNet), []
    result = run(make_sampler("auto"), model, noise(), callback=seen.append)
    assert result.executor == "eager" and len(seen) == int(result.nfe.max())
    assert "a callback runs between network calls" in result.executor_why
    for executor in ("graph", "groups"):
        with pytest.raises(RuntimeError, match=f"'{executor}' does not work here: a callback"):
            run(make_sampler(executor), model, noise(), callback=seen.append)
    empty = run(make_sampler("auto"), model, noise(0))
    assert empty.latents.shape == (0, 4, 8, 8) and "nothing to sample" in empty.executor_why


def test_the_bar_comes_to_its_end(runtimes, capsys):
    for name in ("eager", "groups", "graph"):
        sampler = make_sampler(name)
        for _ in range(2):
            sampler(denoisers.made(denoisers.UNet), noise(), gather=False)
            last = capsys.readouterr().err.split("\r")[-1]
            assert f"{2 * STEPS}/{2 * STEPS}" in last, name


def test_bad_arguments_are_refused_before_anything_is_captured(runtimes):
    model, sampler = denoisers.made(denoisers.UNet), make_sampler()
    for call, error, message in (
        ({"threshold": -1.0}, ValueError, "threshold must be at least 0, got -1.0"),
        ({"threshold": torch.nan}, ValueError, "threshold must be at least 0, got nan"),
        ({"threshold": "0.1"}, TypeError, "threshold must be a number or a tensor"),
        ({"threshold": True}, TypeError, "threshold must be a number or a tensor"),
        ({"threshold": torch.ones(2).bool()}, TypeError, "threshold must be real numbers, got"),
        ({"threshold": torch.ones(2, device="meta")}, ValueError, "threshold must have values"),
        ({"guidance_scale": torch.ones(2).cfloat()}, TypeError, "must be real numbers, got"),
        ({"guidance_scale": 10**400}, ValueError, "guidance_scale must fit float32"),
        ({"seed": None}, TypeError, "seed must be an int or 2 ints"),
        ({"callback": 3}, TypeError, "callback must be callable, got int"),
        ({"threshold": torch.ones(3)}, ValueError, r"shape \(\) or \(2,\), got \(3,\)"),
        ({"guidance_scale": "x"}, TypeError, "guidance_scale must be a number or a tensor"),
        ({"guidance_scale": torch.ones(3)}, ValueError, "one value per sample|unconditional"),
    ):
        with pytest.raises(error, match=message):
            run(sampler, model, noise(), **call)
    assert runtimes == []
    with pytest.raises(ValueError, match="executor must be one of 'auto', 'graph', 'groups', 'eag"):
        make_sampler("fast")


def test_inference_mode_may_change_between_calls(runtimes):
    sampler, model = make_sampler(), denoisers.made(denoisers.UNet)
    expected = run(make_sampler("eager"), model, noise())
    with torch.inference_mode():
        assert_same(expected, run(sampler, model, noise()))
    assert_same(expected, run(sampler, model, noise()))
    with torch.inference_mode():
        assert_same(expected, run(sampler, model, noise()))
    assert sampler.report()["captures"] == 1


def test_nan_is_reported(runtimes):
    model = denoisers.made(denoisers.UNet)
    model.leave.bias.fill_(torch.nan)
    for name in ("groups", "graph"):
        with pytest.warns(RuntimeWarning, match="NaN or Inf") as caught:
            result = run(make_sampler(name), model, noise())
        assert result.nonfinite.tolist() == [True, True] and caught[0].filename == __file__


def test_without_a_device_the_executors_say_what_they_need():
    for executor in ("graph", "groups"):
        with pytest.raises(
            RuntimeError, match=f"'{executor}' does not work here: CUDA graphs need"
        ):
            run(make_sampler(executor), denoisers.made(denoisers.UNet), noise())
    assert run(make_sampler("auto"), denoisers.made(denoisers.UNet), noise()).executor == "eager"
