"""The benchmark of whole samplings, as far as a machine without a GPU can prove it."""

import json
import sys

import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.executors import select as executors
from adaptive_kernels.executors.groups import least_groups
from adaptive_kernels.executors.guard import Guard
from benchmarks.executors import loop as gpu_loop
from benchmarks.executors import networks as gpu_networks
from benchmarks.executors import overhead as gpu_overhead
from benchmarks.executors import samplings as gpu_samplings
from benchmarks.ops.gpu import cases as gpu_cases
from benchmarks.support import clock as gpu_clock
from tests.support.driver import fake_runtime

CLOCK = gpu_clock.Clock()
TINY = {"size": 8, "width": 16}


@pytest.fixture(autouse=True)
def alone():
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before[0])
    torch.backends.cudnn.deterministic = before[1]


@pytest.fixture
def graphs(monkeypatch):
    """Every executor works on the CPU, with the real builder of loops and a stand-in driver."""
    return fake_runtime.install(monkeypatch)


def stack(blocks=2):
    noise, given = gpu_networks.inputs(
        8, {"text": (3, 768)}, "cpu", torch.Generator().manual_seed(0)
    )
    torch.manual_seed(0)
    model = gpu_networks.Stack(blocks, 16).to(gpu_networks.DTYPE).eval().requires_grad_(False)
    return gpu_networks.Network(model, noise, *given, "made up")


@pytest.mark.parametrize(
    ("config", "millions"), [(gpu_networks.SD15, 859.5), (gpu_networks.SDXL, 2567.5)]
)
def test_the_unets_have_their_published_sizes_and_a_graph_can_hold_them(config, millions):
    """And on the meta device they neither draw random numbers nor touch the host."""
    model = gpu_networks.on_meta(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    assert not list(model.buffers()) and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    shapes = gpu_networks.shapes(config)
    half = {
        name: torch.empty(2, *shape, dtype=torch.bfloat16, device="meta")
        for name, shape in shapes.items()
    }
    size = config["sample_size"]
    x = torch.empty(2, 4, size, size, dtype=torch.bfloat16, device="meta")
    with Guard(torch.device("meta")):
        timestep = torch.empty(2, dtype=torch.int64, device="meta")
        out = model(x, timestep, **gpu_networks.nested(half)).sample
    assert out.shape == x.shape and out.dtype == x.dtype


def test_the_small_unet_takes_what_the_large_one_takes():
    small, large = gpu_networks.unet(CLOCK, gpu_networks.TINY), gpu_networks.SDXL
    assert gpu_networks.TINY.keys() == large.keys()
    assert gpu_networks.shapes(gpu_networks.TINY).keys() == gpu_networks.shapes(large).keys()
    assert all(bool(p.isfinite().all()) for p in small.model.parameters())
    assert_reads_everything(small)


def test_a_stack_reads_everything_and_a_graph_can_hold_it():
    assert_reads_everything(stack())
    with torch.device("meta"), Guard(torch.device("meta")):
        x, text = torch.empty(2, 4, 64, 64), torch.empty(2, gpu_networks.TOKENS, 768)
        model = gpu_networks.Stack(3)
        assert model(x, torch.empty(2, dtype=torch.int64), text).shape == x.shape


def assert_reads_everything(network):
    """The output is finite, of the input's size, and another one for other arguments."""

    def output(noise, timestep, half):
        out = network.model(noise.to(gpu_networks.DTYPE), torch.tensor([timestep]), **half)
        return out if isinstance(out, torch.Tensor) else out.sample

    first = output(network.noise, 500, network.conditioning)
    assert bool(first.isfinite().all()) and 0.01 < float(first.float().std()) < 10
    for other in (
        output(network.noise + 1, 500, network.conditioning),
        output(network.noise, 480, network.conditioning),
        output(network.noise, 500, network.unconditional),
    ):
        assert not torch.equal(first, other)


@pytest.mark.parametrize(("wanted", "blocks"), [(35, 1), (130, 10), (5030, 500)])
def test_a_stack_is_sized_by_what_its_blocks_take(monkeypatch, wanted, blocks):
    """On a device where 30 us come before the first block and every block takes 10."""
    norms = []
    monkeypatch.setattr(gpu_networks.Stack, "norm", lambda self, h: norms.append(1) or h)

    def replay(clock, call):
        norms.clear()
        call()
        return 30 + 10 * (len(norms) - 1)

    monkeypatch.setattr(gpu_networks, "replay", replay)
    stack = gpu_networks.stack(CLOCK, wanted, **TINY)
    assert stack.facts == {"blocks": blocks, "wanted_us": wanted}
    assert stack.note == f"{blocks} blocks of width 16"


def test_the_patterns_are_what_they_are_said_to_be():
    table, network = gpu_cases.table(gpu_samplings.STEPS), stack()
    least = {}
    for pattern, calls in gpu_samplings.CALLS.items():
        result = gpu_samplings.Sampling(CLOCK, network, "eager", pattern)()
        assert int(result.nfe) == int(result.refreshed.sum()) == calls
        least[pattern] = least_groups(table, gpu_samplings.PATTERNS[pattern])[0]
        if pattern == "adaptive":
            called = result.refreshed[:, 0].nonzero()[:, 0].tolist()
            assert called == [0, 1, *range(2, 50, 2)]
    assert gpu_samplings.CALLS["adaptive"] == 26
    # What the host knows before: everything, or as good as nothing.
    assert least == {"full": 50, "adaptive": 26, "unforeseen": 12}


def test_the_table_of_fifty_steps_is_that_of_diffusers():
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    own, theirs = gpu_cases.table(50), ak.SolverTable.from_scheduler(scheduler, 50)
    assert torch.equal(own.timesteps, theirs.timesteps)
    torch.testing.assert_close(own.A, theirs.A, rtol=0, atol=1e-6)
    torch.testing.assert_close(own.C[:, 0] * own.q, theirs.C[:, 0] * theirs.q, rtol=0, atol=1e-6)


def test_overhead_is_what_the_replays_do_not_take():
    """26 ticks of 1 ms and 10 us more each; one round was slower as a whole."""
    loops, replays = [0.02626, 0.02626, 0.03626], [0.026, 0.026, 0.036]
    row = gpu_overhead.overhead(loops, replays, 26)
    assert row["launch_us"] == pytest.approx(26260) and row["replay_us"] == pytest.approx(1000)
    assert row["overhead_us_per_tick"] == pytest.approx(10)
    assert row["overhead_share"] == pytest.approx(260 / 26260)
    assert row["overhead_error_us"] == pytest.approx(0, abs=1e-6)
    # Rounds that disagree by 4 us a tick.
    row = gpu_overhead.overhead([0.1, 0.1 + 1e-4, 0.1 + 2e-4], [0.1, 0.1, 0.1], 50)
    assert row["overhead_us_per_tick"] == pytest.approx(2)
    assert row["overhead_error_us"] == pytest.approx(4 / 3**0.5)
    assert row["overhead_share_error"] == pytest.approx(4 / 3**0.5 * 50 / 100100, rel=1e-3)


def test_gains_are_over_the_full_run_of_the_same_executor():
    rows = [
        {"executor": "eager", "pattern": "full", "us": 900.0, "steps": 50, "nfe": 50},
        {"executor": "eager", "pattern": "released", "us": 600.0, "steps": 50, "nfe": 25},
        {"executor": "graph", "pattern": "adaptive", "us": 208.0, "steps": 50, "nfe": 26},
        {"executor": "graph", "pattern": "full", "us": 400.0, "steps": 50, "nfe": 50},
        {"executor": "groups", "pattern": "adaptive", "us": 210.0, "steps": 50, "nfe": 26},
        {"executor": "groups", "pattern": "full", "error": "it failed"},
    ]
    gpu_overhead.compare(rows)
    assert [row.get("speedup") for row in rows[:4]] == pytest.approx([1, 1.5, 400 / 208, 1])
    assert rows[1]["speedup_share"] == pytest.approx(0.75)
    assert rows[2]["speedup_share"] == pytest.approx(1) == rows[3]["speedup_share"]
    assert rows[4]["speedup"] is None and rows[4]["speedup_share"] is None
    assert "speedup" not in rows[5]


def test_turns_are_taken_round_by_round():
    taken = []
    turns = {name: lambda name=name: taken.append(name) or len(taken) for name in "ab"}
    found = gpu_clock.interleaved(turns, seconds=0, least=3)
    assert "".join(taken) == "abbaab"
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert len(gpu_clock.interleaved(turns, seconds=60, most=5)["a"]) == 5


def planned(*plans):
    case = gpu_loop.Case("made up", "stack", None)
    return [row for row in case.rows() if (row["executor"], row["pattern"]) in plans]


GRAPH, GROUPS = ("graph", "adaptive"), ("groups", "unforeseen")


def test_every_executor_is_compared_and_timed(graphs):
    rows = gpu_samplings.measure(CLOCK, stack(), planned(GRAPH, GROUPS), 0)
    assert [row["name"] for row in rows] == [
        "made up, graph, adaptive",
        "made up, groups, unforeseen",
    ]
    for row, ticks in zip(rows, (26, 50), strict=True):
        assert (row["ticks"], row["nfe"], row["steps"], row["rounds"]) == (ticks, ticks, 50, 3)
        assert row["executor_why"] == "as asked" and row["captures"] == 1
        assert row["memory"]["activations"] == 1000 and row["memory"]["buffers"] > 0
        # The launch is a part of the call, the network of the launch.
        assert row["us"] > row["launch_us"] > row["replay_us"] * ticks * 0.5 > 0
        assert row["steps_over_nfe"] == 50 / ticks and row["speedup"] is None


def test_a_wrong_result_is_not_timed(graphs, monkeypatch):
    off = 0.0
    run = executors.Loop.run

    def run_wrong(loop, bar):
        run(loop, bar)
        loop.network.state.latents.add_(off)

    def error():
        (row,) = gpu_samplings.measure(CLOCK, stack(), planned(GRAPH), 0)
        assert "us" not in row and not graphs[-1].alive
        return row["error"]

    monkeypatch.setattr(executors.Loop, "run", run_wrong)
    off = 0.5
    assert "256 of 256 latents differ from the eager loop's, by at most 0.5" in error()
    off = torch.nan
    with pytest.warns(RuntimeWarning, match="NaN or Inf"):
        assert "the latents hold NaN or Inf" in error()
    off = 0.0
    monkeypatch.setitem(gpu_samplings.CALLS, "adaptive", 25)
    assert "[26] calls" in error()
    works = {"graph": (False, "the driver is too old"), "eager": (True, "")}
    monkeypatch.setattr(executors.capability, "executors", lambda facts: works)
    assert "executor 'graph' does not work here: the driver is too old" in error()


def test_another_executor_than_was_asked_for_is_a_failure():
    sampling = gpu_samplings.Sampling(CLOCK, stack(), "graph", "adaptive")
    result = gpu_samplings.Sampling(CLOCK, sampling.network, "eager", "adaptive")()
    with pytest.raises(AssertionError, match="graph was asked for, eager ran: as asked"):
        gpu_samplings.verify(result, result, sampling)


def run(path, *arguments):
    code = gpu_loop.main(["--out", str(path), "--device", "cpu", "--tiny", *arguments])
    return code, json.loads(path.read_text())


def test_the_whole_benchmark_on_a_cpu(graphs, tmp_path, capsys):
    code, loop = run(tmp_path / "a" / "loop.json")
    assert code == 0 and not loop["failed"] and not loop["not_begun"] and not loop["skipped"]
    assert [row["name"] for row in loop["rows"]] == [case["name"] for case in loop["cases"]]
    rows = gpu_overhead.planned(loop)
    for row in rows:
        assert row["us"] > 0 and row["executor_why"] == "as asked"
        assert (row["overhead_us_per_tick"] is None) == (row["executor"] == "eager")
        assert (row["speedup"] is None) == (row["executor"] == "groups")
    plans = [(r["executor"], r["pattern"]) for r in rows if r["network"] == "tiny U-Net"]
    assert plans == [*gpu_loop.UNET_PLANS]
    assert "tiny stack (stack)" in capsys.readouterr().out
    # Words explain what no name tells.
    assert loop["words"].keys() >= {"overhead_us_per_tick", "speedup_share", "unforeseen"}


def test_without_diffusers_the_unets_are_skipped(graphs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, loop = run(tmp_path / "loop.json")
    assert code == 0 and not loop["failed"] and not loop["not_begun"]
    assert loop["skipped"].keys() == {"tiny U-Net"}
    assert loop["skipped"]["tiny U-Net"].startswith("diffusers cannot be imported: ")
    assert {row["network"] for row in loop["rows"]} == {"tiny stack"}
    # They stay among the cases, with nothing known of them.
    assert sum(row["us"] is None for row in gpu_overhead.planned(loop)) == 4


def test_running_out_of_time_or_of_luck_loses_nothing(graphs, tmp_path, monkeypatch):
    path = tmp_path / "loop.json"
    seen = {}

    def never(clock):
        seen.update(json.loads(path.read_text()))
        raise RuntimeError("out of memory")

    tiny = gpu_loop.TINY[0]
    cases = (
        tiny,
        gpu_loop.Case("sick", "stack", never),
        gpu_loop.Case("long", "U-Net", never, needs=1e6),
        tiny._replace(network="short"),
    )
    monkeypatch.setattr(gpu_loop, "TINY", cases)
    code, loop = run(path, "--seconds", "100")
    assert code == 1
    # As the file stood when the second network was begun.
    assert {row["network"] for row in seen["rows"]} == {"tiny stack"}
    assert seen["not_begun"] == ["sick", "long", "short"]
    assert loop["failed"] == ["sick: RuntimeError: out of memory"]
    assert loop["not_begun"] == ["long"]
    assert {row["network"] for row in loop["rows"]} == {"tiny stack", "short"}


def test_what_is_planned_fits_in_its_time():
    assert sum(case.needs for case in gpu_loop.CASES) <= 145
    names = [case.network for case in gpu_loop.CASES]
    assert names[:4] == ["SD-1.5", "0.2 ms", "1 ms", "5 ms"]
    assert sorted(names[4:]) == ["20 ms", "SDXL"]
    assert all(case.seconds < case.needs for case in gpu_loop.CASES)


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert gpu_loop.main(["--out", str(tmp_path / "loop.json")]) == 1
    assert "no CUDA GPU is here" in capsys.readouterr().err
