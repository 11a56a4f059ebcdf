"""`calibrate`: targets are met, held-out samples stay out, nothing is lost or mixed up."""

import dataclasses
import json
import os

import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.calibration import run, trials
from adaptive_kernels.calibration.search import Search
from adaptive_kernels.demo.model import NULL_LABEL, SAMPLE_SHAPE, demo_scheduler, load_demo_model
from adaptive_kernels.metrics import psnr
from tests.support.networks import Interrupted, Network
from tests.support.schedulers import CASE

STEPS = 8
BATCH = 12
HELD = torch.arange(BATCH) % 4 == 3


def noise(batch=BATCH):
    return torch.randn(batch, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def labels(batch=BATCH):
    return {"label": torch.rand(batch, generator=torch.Generator().manual_seed(2)) * 2}


def calibrate(model=None, case="ddim", steps=STEPS, **keywords):
    given = {"noise": noise(), "conditioning": labels(), "trials": 1, "progress": False}
    given |= {"curve": []} if keywords.get("criterion", "plan") == "plan" else {}
    given |= CASE[case].kwargs
    return ak.calibrate(model or Network(), CASE[case].make(), steps, **(given | keywords))


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Drawing takes longer than most of these calibrations: one test looks at the picture."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(
            "adaptive_kernels.calibration.run.tradeoff_picture", lambda path, _: path.write_text("")
        )


def figures(config, rows, case="ddim", steps=STEPS, **keywords):
    """(mean calls, mean PSNR) of a config on some of the samples, summed up anew."""
    given = [noise()[rows], {"label": labels()["label"][rows]}]
    runs = [
        ak.AdaptiveSampler(CASE[case].make(), steps, c, **CASE[case].kwargs)(
            Network(), *given, progress=False, seed=rows.nonzero()[:, 0], **keywords
        )
        for c in (config, ak.AdaptiveConfig(criterion="never"))
    ]
    error = (runs[0].latents - runs[1].latents).double().square().mean((1, 2, 3))
    db = (10 * torch.log10(4 / error)).clamp(max=100)
    return runs[0].nfe.double().mean().item(), db.mean().item()


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


TARGETS = [
    ("plan", "calls", 4, "ddim", 8),
    ("plan", "calls", 8, "ddim", 8),
    ("plan", "calls", 1, "ddim", 8),
    ("plan", "calls", 5, "heun", 5),  # 9 rows, 5 whole steps: 4 or 5 or 6 calls
    ("plan", "quality_db", 35, "dpm-2m", 8),
    ("plan", "quality_db", 100, "ddim", 8),
    ("plan", "quality_db", 30, "euler-ancestral", 8),
    ("defect", "calls", 11.5, "ddim", 20),
    ("defect", "quality_db", 40, "ddim", 20),
    ("third_order", "calls", 12, "dpm-2m", 20),
    ("third_order", "quality_db", 30, "flow-euler", 20),
    ("released", "calls", 10, "ddim", 20),
    ("released", "quality_db", 35, "euler-ancestral", 20),
]


@pytest.mark.parametrize(("criterion", "name", "target", "case", "steps"), TARGETS)
def test_the_target_is_met_and_the_report_tells_the_truth(
    criterion, name, target, case, steps, tmp_path
):
    config = calibrate(case=case, steps=steps, criterion=criterion, out=tmp_path, **{name: target})
    nfe, db = figures(config, ~HELD, case, steps)
    if name == "calls":
        assert abs(nfe - target) <= (1.0 if case == "heun" else 0.5)
    else:
        assert db >= target - 1e-6
    report = json.loads((tmp_path / "report.json").read_text())
    chosen = report["chosen"]
    assert chosen["nfe"] == pytest.approx(nfe)
    assert chosen["psnr_db"] == pytest.approx(db, abs=1e-6)
    assert chosen["psnr_db_worst_tenth"] <= chosen["psnr_db"]
    held = chosen["held_out"]
    assert (held["nfe"], held["psnr_db"]) == pytest.approx(figures(config, HELD, case, steps))
    assert report["samples"] == {"tuned": 9, "held_out": 3}
    assert report["criterion"] == criterion == config.criterion
    assert report["target"][name] == target
    assert {k: v for k, v in chosen.items() if k != "held_out"} in report["curve"]
    if name == "quality_db":
        # Nothing tried that reaches the target makes fewer calls.
        assert all(p["nfe"] >= nfe for p in report["curve"] if p["psnr_db"] >= target)


@dataclasses.dataclass
class Labels:
    label: object


@pytest.mark.parametrize("kind", ["dataclass", "array"])
def test_conditioning_is_picked_and_known_by_its_values_wherever_it_is(kind, tmp_path):
    """In a dataclass and as a NumPy array: the samples held out, the key of what is done."""

    class Inside(Network):
        def __call__(self, x, timestep, given=None, label=None):
            return super().__call__(x, timestep, label if given is None else given.label)

    def given(label):
        if kind == "array":
            return {"label": label.numpy()}
        return {"given": Labels(label)}

    label = labels()["label"]
    ours = calibrate(Inside(), calls=4, conditioning=given(label), out=tmp_path / "a")
    assert ours == calibrate(calls=4, out=tmp_path / "b")
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in "ab"]
    assert reports[0]["chosen"] == reports[1]["chosen"]
    changed = label.clone()
    changed[5] += 1e-3
    with pytest.raises(ValueError, match="got that of another model input"):
        calibrate(Inside(), calls=4, conditioning=given(changed), out=tmp_path / "a")


def test_out_holds_the_config_the_report_and_a_picture(tmp_path):
    config = calibrate(calls=4, out=tmp_path / "a" / "b", curve=[2, 6])
    folder = tmp_path / "a" / "b"
    assert ak.load_config(folder / "config.json") == config
    picture = (folder / "curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n") and picture.endswith(b"IEND\xaeB`\x82")
    report = json.loads((folder / "report.json").read_text())
    assert [point["nfe"] for point in report["curve"]] == [2, 4, 6]
    assert len(files(folder)) == 6
    assert not [name for name in files(folder) if name.startswith(".")]


def test_halves_that_do_not_stack_are_calibrated_one_by_one(recwarn):
    """And nobody is told of the settings on the way that skip next to nothing."""

    class Words(torch.nn.Module):
        def forward(self, x, timestep, words):
            return torch.tanh(0.3 * x + 0.1 * words.mean(1)[:, None, None, None])

    given = {
        "conditioning": {"words": torch.rand(BATCH, 7)},
        "unconditional": {"words": torch.rand(1, 4)},
        **{"guidance_scale": 2.0, "guidance_calls": "separate"},
    }
    plan = calibrate(Words(), calls=4, **given)
    assert plan.plan.calls == 4
    found = calibrate(Words(), calls=12, steps=16, criterion="defect", **given)
    assert 0 < found.threshold < 1
    assert not [w for w in recwarn if "skipped" in str(w.message)]


def test_without_out_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = calibrate(calls=4, out="here")
    before = files(tmp_path / "here")
    assert calibrate(calls=4) == kept
    assert [*tmp_path.iterdir()] == [tmp_path / "here"]
    assert files(tmp_path / "here") == before


def test_held_out_samples_take_no_part():
    def model(x, timestep, label, wild):
        m = Network()(x, timestep, label)
        return m + wild[:, None, None, None] * 50 * torch.cos(timestep[:, None, None, None] * x)

    def found(wild, **keywords):
        conditioning = labels() | {"wild": wild}
        return calibrate(model, conditioning=conditioning, **keywords)

    for keywords in ({"calls": 4}, {"quality_db": 30, "criterion": "defect", "steps": 10}):
        calm = found(torch.zeros(BATCH), **keywords)
        assert found(HELD.float(), **keywords) == calm
        assert found((~HELD).float(), **keywords) != calm


@pytest.mark.parametrize("criterion", ["plan", "defect"])
def test_an_interrupted_calibration_goes_on(criterion, tmp_path):

    def run(model, out):
        return calibrate(model, calls=6, steps=10, criterion=criterion, out=out)

    network = Network()
    expected = run(network, tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "report.json").read_text())
    # In the first full run, in the second, in what follows, and in the very last step.
    places = [(3, RuntimeError()), (14, KeyboardInterrupt()), (25, RuntimeError())]
    for at, error in [*places, (network.calls - 1, KeyboardInterrupt())]:
        out = tmp_path / str(at)
        with pytest.raises(type(error)):
            run(Interrupted(at, error), out)
        assert not [name for name in files(out) if not name.startswith(("cal", "tun", "held"))]
        second = Network()
        assert run(second, out) == expected
        assert json.loads((out / "report.json").read_text()) == whole
        assert second.calls < network.calls or at < 10
        assert files(out).keys() == files(tmp_path / "whole").keys()
    third = Network()
    assert run(third, out) == expected
    # Two checks of the model, and the held-out samples.
    assert third.calls <= 2 + 10


class Other(Network):
    def __call__(self, x, timestep, label=None):
        # Half a percent of another answer.
        return super().__call__(x, timestep, label) * 1.005


GUIDED = {"guidance_scale": 2.0, "unconditional": {"label": torch.zeros(BATCH)}}


HALVES = ("conditioning", "unconditional")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"noise": noise() + 1e-6}, "out must be empty or hold this calibration, got that of"),
        ({"conditioning": {"label": labels()["label"].flip(0)}}, "out must be empty or hold"),
        ({"noise": noise()[:8]} | {k: {"label": torch.zeros(8)} for k in HALVES}, "out must be e"),
        (GUIDED | {"guidance_scale": 2.5}, "out must be empty or hold this calibration"),
        ({"guidance_scale": None, "unconditional": None}, "out must be empty or hold this"),
        ({"steps": 9}, "out must be empty or hold this calibration"),
        ({"case": "ddim-v"}, "out must be empty or hold this calibration"),
        ({"case": "dpm-2m"}, "out must be empty or hold this calibration"),
        ({"seed": 4}, "out must be empty or hold this calibration"),
        ({"dtype": torch.bfloat16}, "out must be empty or hold this calibration"),
        ({"model": Other()}, "model must be the one whose calibration .* holds, got another"),
    ],
)
def test_another_calibration_is_refused_and_the_old_one_stays(changed, message, tmp_path):
    given = GUIDED | {"calls": 4, "out": tmp_path}
    calibrate(**given)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message):
        calibrate(**(given | changed))
    assert files(tmp_path) == before


def test_the_first_step_of_a_schedule_is_part_of_a_calibration(tmp_path):
    """Tables whose rows alone are alike: another scale of the first latents."""
    table = ak.SolverTable.from_scheduler(CASE["euler"].make(), STEPS)
    fields = {name: getattr(table, name) for name in table.__dataclass_fields__}
    other = ak.SolverTable(**(fields | {"init_noise_sigma": table.init_noise_sigma * 0.9}))
    assert torch.equal(other.rows(), table.rows())
    given = {"noise": noise(), "calls": 4, "trials": 0, "progress": False, "out": tmp_path}
    ak.calibrate(Network(), table, **given)
    with pytest.raises(ValueError, match="out must be empty or hold this calibration"):
        ak.calibrate(Network(), other, **given)


@pytest.mark.parametrize("criterion", ["plan", "defect"])
@pytest.mark.parametrize("other", [{"decode": lambda x: x.tanh()}, {"data_range": 6.0}])
def test_figures_of_another_view_are_not_mixed_in(criterion, other, tmp_path):
    given = {"quality_db": 40, "criterion": criterion, "trials": 0}
    fresh = calibrate(**given, **other)
    plain = calibrate(**given, out=tmp_path)
    assert calibrate(**given, **other, out=tmp_path) == fresh
    assert calibrate(**given, out=tmp_path) == plain


def test_decode_may_work_in_place_or_in_one_buffer():
    expected = calibrate(quality_db=40, decode=lambda x: x.clamp(-0.5, 0.5))
    assert calibrate(quality_db=40, decode=lambda x: x.clamp_(-0.5, 0.5)) == expected
    buffers = {n: torch.empty(n, 1, 6, 6) for n in (3, 9)}

    def static(x):
        return torch.clamp(x, -0.5, 0.5, out=buffers[len(x)])

    assert calibrate(quality_db=40, decode=static) == expected


BROKEN = [
    ({"calibration.json": "{"}, "out must hold a readable calibration.json, got"),
    ({"calibration.json": "[]"}, "out must hold a readable calibration.json, got"),
    ({"calibration.json": '{"values": {}}'}, "out must hold a readable calibration.json, got"),
    ({"config.json": "{}"}, "out must be empty or hold this calibration, got .* config.json and"),
    ({"curve.png": ""}, "out must be empty or hold this calibration, got .* with curve.png and"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_a_folder_of_something_else_is_refused(content, message, tmp_path):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    before, network = files(tmp_path), Network()
    with pytest.raises(ValueError, match=message):
        calibrate(network, calls=4, out=tmp_path)
    assert (files(tmp_path), network.calls) == (before, 0)


def test_a_broken_recording_is_refused(tmp_path):
    calibrate(calls=4, out=tmp_path)
    path = next(tmp_path.glob("tuned-*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="out must hold a readable tuned-"):
        calibrate(calls=4, out=tmp_path)


@pytest.mark.parametrize("kind", ["a file", "below a file", "a folder in the way", "read-only"])
def test_an_out_that_cannot_be_written_costs_no_network_call(kind, tmp_path, monkeypatch):
    network, out = Network(), tmp_path / "out"
    if kind == "a folder in the way":
        (out / "calibration.json").mkdir(parents=True)
    elif kind == "read-only":  # root writes everywhere, so the system call itself refuses
        calibrate(calls=4, out=out)
        monkeypatch.setattr(os, "replace", _refuse)
    else:
        out.write_text("")
        out = out / "x" if kind == "below a file" else out
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError):
        calibrate(network, calls=4, out=out)
    assert network.calls == 0
    assert sorted(tmp_path.rglob("*")) == before


def _refuse(*arguments):
    raise PermissionError("read-only")


def test_an_error_at_the_end_leaves_no_partial_file(tmp_path, monkeypatch):
    monkeypatch.setattr("adaptive_kernels.calibration.run.tradeoff_picture", _half_a_picture)
    with pytest.raises(MemoryError):
        calibrate(calls=4, out=tmp_path)
    assert not [name for name in files(tmp_path) if name.startswith(".") or name == "curve.png"]


def _half_a_picture(path, report):
    path.write_bytes(b"\x89PNG")
    raise MemoryError


def bad(model):
    """Good for the full runs, NaN once a step was skipped."""

    def skipped(x, timestep, label):
        skipped.calls += 1
        return model(x, timestep, label) * (torch.nan if skipped.calls > 2 * STEPS else 1.0)

    skipped.calls = 0
    return skipped


DEFECT = {"criterion": "defect"}
NO_LEVELS = "scheduler must have an add_noise"
REFUSED = [
    ({"calls": None}, ValueError, "one of calls and quality_db must be given, got calls=None"),
    ({"quality_db": 40}, ValueError, "one of calls and quality_db must be given, got calls=4"),
    ({"calls": "4"}, TypeError, "calls must be a number, got str"),
    ({"calls": True}, TypeError, "calls must be a number, got bool"),
    ({"calls": 0.5}, ValueError, "calls must be at least 1 and finite, got 0.5"),
    ({"calls": torch.inf}, ValueError, "calls must be at least 1 and finite, got inf"),
    ({"calls": 9}, ValueError, "calls must be at most the 8 of SolverTable.DDIM.*got 9"),
    ({"calls": 9} | DEFECT, ValueError, "calls must be at most the 8 of SolverTable.DDIM"),
    ({"calls": None, "quality_db": 101}, ValueError, "quality_db must be at most 100, got 101"),
    ({"criterion": "never"}, ValueError, "criterion must be 'plan' or one of .*got 'never'"),
    ({"criterion": ["plan"]}, ValueError, "criterion must be 'plan' or one of"),
    ({"config": ak.AdaptiveConfig()}, ValueError, "config goes with an adaptive criterion"),
    ({"config": "x"} | DEFECT, TypeError, "config must be an AdaptiveConfig, got str"),
    ({"config": ak.AdaptiveConfig.paper()} | DEFECT, ValueError, "'defect', got 'third_order'"),
    ({"curve": [4]} | DEFECT, ValueError, "curve goes with criterion 'plan', got .*'defect'"),
    ({"curve": [4, 9]}, ValueError, r"curve must be numbers of calls from 1 to 8, got \[4, 9\]"),
    ({"curve": [2.5]}, ValueError, "curve must be numbers of calls from 1 to 8"),
    ({"curve": 5}, ValueError, "curve must be numbers of calls from 1 to 8, got 5"),
    ({"trials": -1}, ValueError, "trials must be an int of at least 0, got -1"),
    ({"trials": 2.0}, ValueError, "trials must be an int of at least 0, got 2.0"),
    ({"noise": noise(7)}, ValueError, r"noise must be .* B >= 8, got \(7, 1, 6, 6\)"),
    ({"noise": [1.0]}, ValueError, r"noise must be \[B, ...\] with B >= 8, got list"),
    ({"noise": torch.zeros(8, 0)}, ValueError, r"noise must be .*got \(8, 0\)"),
    ({"noise": torch.ones(8, 2).int()}, TypeError, "noise must be a floating-point tensor"),
    ({"conditioning": "label"}, TypeError, "conditioning must be a mapping"),
    ({"conditioning": labels(20)}, ValueError, r"conditioning\['label'\] must have one row per s"),
    ({"conditioning": labels(5)}, ValueError, r"conditioning\['label'\] must have one row per sa"),
    ({"unconditional": labels()}, ValueError, "unconditional needs a guidance_scale, got guida"),
    ({"guidance_scale": 2.0}, ValueError, "unconditional must be given with guidance_scale"),
    ({"guidance_scale": torch.ones(BATCH)}, ValueError, "guidance_scale must be one number for"),
    ({"guidance_scale": "2"}, TypeError, "guidance_scale must be a number or a tensor"),
    ({"seed": [1, 2]}, ValueError, "seed must be an int or 12 ints"),
    ({"latents": torch.zeros(3)}, ValueError, "latents must have shape"),
    ({"decode": 5}, TypeError, "decode must be callable or None, got int"),
    ({"data_range": 0.0}, ValueError, "data_range must be positive and finite, got 0.0"),
    ({"data_range": "2"}, TypeError, "data_range must be a number, got str"),
    ({"model": 5}, TypeError, "model must be callable, got int"),
    ({"progress": "no"}, TypeError, "progress must be a bool, got 'no'"),
    ({"trails": 3}, TypeError, r"^calibrate has no argument 'trails', .* did you mean trials\?"),
    (
        {"dtype": torch.int8},
        ValueError,
        "dtype must be torch.float32, torch.float16 or torch.bfloat16",
    ),
    ({"steps": 2, "calls": 2}, ValueError, "num_inference_steps must be at least 3, got Solver"),
    ({"steps": 1, "calls": 1} | DEFECT, ValueError, "num_inference_steps must be at least 3, got"),
    ({"steps": 2, "case": "heun", "calls": 2}, ValueError, "num_inference_steps must be at least"),
    ({"case": "pndm-v"}, ValueError, NO_LEVELS + ".*PNDMScheduler"),
    ({"case": "pndm-v", "criterion": "third_order"}, ValueError, NO_LEVELS + ".*PNDMScheduler"),
]


@pytest.mark.parametrize(("changed", "error", "message"), REFUSED)
def test_bad_arguments_are_refused_before_anything_is_done(changed, error, message, tmp_path):
    network = Network()
    with pytest.raises(error, match=message):
        calibrate(**({"calls": 4, "model": network, "out": tmp_path / "out"} | changed))
    assert network.calls == 0
    assert [*tmp_path.iterdir()] == []


JUMP = ak.AdaptiveConfig(criterion="released", granularity="batch")
LATE = [
    ({"model": lambda x, t, label: x * torch.nan}, "model must return finite outputs; the full"),
    ({"model": bad(Network())}, "model must return finite outputs, got NaN or Inf before step"),
    ({"decode": lambda x: x * torch.nan}, "decode must return finite numbers, got NaN"),
    ({"decode": lambda x: x.sum()}, r"decode must return a tensor \[9, ...\], got \(\)"),
    ({"decode": lambda x: None}, r"decode must return a tensor \[9, ...\], got NoneType"),
    ({"calls": 1} | DEFECT, "calls must be within reach of the criterion, at least .*, got 1"),
    (
        {"case": "dpm-2m", "steps": 20, "calls": 17, "criterion": "released", "config": JUMP},
        "calls must be within reach of the criterion, which goes from 15.0 to 19.0 at once here",
    ),
    (
        {"calls": None, "quality_db": 99, "decode": lambda x: x + 0.01 * torch.randn_like(x)},
        "quality_db must be within reach of the criterion, at most .*, got 99",
    ),
]


@pytest.mark.filterwarnings("ignore:the latents of samples:RuntimeWarning")
@pytest.mark.parametrize(("changed", "message"), LATE)
def test_what_only_sampling_shows_is_refused_by_name(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        calibrate(**({"calls": 4, "out": tmp_path} | changed))
    assert not [name for name in files(tmp_path) if not name.startswith(("cal", "tun", "held"))]


def test_a_criterions_other_settings_stay_as_given():
    base = ak.AdaptiveConfig(0.5, max_skip=2, criterion="defect", granularity="batch", warmup=4)
    found = calibrate(calls=9, steps=16, criterion="defect", config=base)
    assert found != base
    assert found.origin.num_steps == 16
    assert dataclasses.replace(found, origin=None) == ak.AdaptiveConfig(
        found.threshold, max_skip=2, criterion="defect", granularity="batch", warmup=4
    )


def test_what_was_found_at_another_number_of_calls_is_a_start(tmp_path, monkeypatch):
    """A search that misses does not make a plan worse than one with fewer calls."""
    search = Search.optima

    def misled(self, calls, *arguments):
        late = torch.arange(self.wholes) > self.wholes - calls
        late[0] = True
        return search(self, calls, *arguments) if calls == 5 else [late]

    monkeypatch.setattr(Search, "optima", misled)
    calibrate(calls=6, curve=[5], trials=0, out=tmp_path)
    few, more = json.loads((tmp_path / "report.json").read_text())["curve"]
    assert (few["nfe"], more["nfe"]) == (5, 6)
    assert more["psnr_db"] > few["psnr_db"]


@pytest.mark.parametrize(
    "keywords",
    [
        {"calls": 4},
        {"calls": 4, "curve": None},
        {"quality_db": 20},
        {"calls": 5, "criterion": "defect"},
    ],
    ids=str,
)
def test_the_bar_has_a_total_from_the_start_and_ends_full(keywords, monkeypatch):
    totals, bars = [], []

    class Watched(run.tqdm):
        def refresh(self, *arguments, **named):
            totals.append((self.n, self.total))

        def close(self):
            bars.append((self.n, self.total))

    monkeypatch.setattr(run, "tqdm", Watched)
    calibrate(progress=True, **keywords)
    (made, total), (begun, first) = bars[-1], totals[0]
    assert made == total > 0 == begun
    assert all(n <= most for n, most in totals)
    if "calls" in keywords:
        assert total / 2 < first < 2 * total, "the estimate before anything is known"


@pytest.mark.parametrize("criterion", ["plan", "defect"])
def test_a_default_device_and_dtype_do_not_matter(criterion):
    scheduler, x = CASE["dpm-2m"].make(), noise()

    def model(model_input, timestep):
        return torch.tanh(model_input * timestep[:, None, None, None] / 500)

    def run():
        given = {"noise": x, "calls": 6, "trials": 1, "curve": None, "progress": False}
        return ak.calibrate(model, scheduler, 8, criterion=criterion, **given)

    expected = run()
    with torch.device("meta"):
        assert run() == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert run() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_shipped_model_is_planned_better_than_a_fixed_pattern(tmp_path):
    model, y = load_demo_model(), torch.arange(10)
    x = torch.randn(10, *SAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    given = (x, {"class_labels": y}, {"class_labels": torch.full_like(y, NULL_LABEL)})
    config = ak.calibrate(
        model,
        demo_scheduler(),
        10,
        noise=x,
        conditioning=given[1],
        unconditional=given[2],
        guidance_scale=2.0,
        calls=5,
        trials=0,
        curve=[],
        out=tmp_path,
        progress=False,
    )

    def sampled(config):
        sampler = ak.AdaptiveSampler(demo_scheduler(), 10, config, guidance_scale=2.0)
        return sampler(model, *given, progress=False)

    full = sampled(ak.AdaptiveConfig(criterion="never")).latents
    plan, pattern = sampled(config), sampled(ak.AdaptiveConfig(criterion="every(2)"))
    assert plan.nfe.tolist() == pattern.nfe.tolist() == [5] * 10
    held = torch.arange(10) % 4 == 3
    ours, theirs = (psnr(r.latents[held], full[held]).mean() for r in (plan, pattern))
    assert ours > theirs + 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chosen"]["held_out"]["psnr_db"] == pytest.approx(ours.item(), abs=0.01)


class Brittle(Network):
    """A network that knows the latents of full runs alone, and gives NaN far from them."""

    def __init__(self, calls):
        super().__init__()
        self.left, self.known = calls, {}

    def __call__(self, x, timestep, label=None):
        out, at = super().__call__(x, timestep, label), float(timestep[0])
        if self.left:
            self.left -= 1
            self.known.setdefault(at, []).append(x.clone())
            return out
        known = torch.cat(self.known[at])
        off = (x[:, None] - known).abs().flatten(2).amax(2).amin(1)
        return torch.where((off > 0.02)[:, None, None, None], torch.nan, out)


@pytest.mark.filterwarnings("ignore:the latents of samples")
def test_a_threshold_at_which_the_solver_diverges_is_a_bad_one_not_an_error(tmp_path):
    # Full runs of the tuned samples and of those held out.
    model = Brittle(2 * 20)
    config = calibrate(model, steps=20, criterion="third_order", quality_db=45, out=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    lost = [p["threshold"] for p in report["curve"] if p["psnr_db"] == trials.LEAST_DB]
    assert lost and config.threshold < min(lost)
    assert 45 <= report["chosen"]["psnr_db"] < trials.MOST_DB


def test_the_noise_of_the_network_is_measured_with_a_threshold(tmp_path):
    """In bfloat16 a size for each step, kept with the config and for a second start; else none."""
    y = torch.arange(10)
    x = torch.randn(10, *SAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    labels = {"class_labels": y}, {"class_labels": torch.full_like(y, NULL_LABEL)}

    def run(model, out, **config):
        return ak.calibrate(
            model,
            demo_scheduler(),
            8,
            noise=x,
            conditioning=labels[0],
            unconditional=labels[1],
            guidance_scale=2.0,
            calls=6,
            criterion="defect",
            out=out,
            progress=False,
            **config,
        )

    model = load_demo_model(torch.bfloat16)
    found = run(model, tmp_path / "half")
    assert len(found.output_noise) == 8
    assert all(0.5 * 2**-8 < size < 8 * 2**-8 for size in found.output_noise)
    assert (
        ak.load_config(tmp_path / "half" / "config.json") == found == run(model, tmp_path / "half")
    )
    assert run(load_demo_model(), tmp_path / "whole").output_noise is None
    told = ak.AdaptiveConfig(criterion="defect", output_noise=0.01)
    assert run(model, None, config=told).output_noise == 0.01
