"""The laboratory's driver: its files, going on after a stop, tuning, aggregation, folders."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from adaptive_kernels import AdaptiveConfig
from adaptive_kernels.demo import model as demo_model
from adaptive_kernels.metrics import psnr
from benchmarks.fidelity import features, folder, problem, run, table, tune
from benchmarks.fidelity.__main__ import main
from benchmarks.fidelity.methods import ours
from benchmarks.fidelity.records import appearing

PICTURES = ("psnr-nfe.png", "limit.png", "nfe.png", "decisions.png", "ablation.png")
SMALL = ["--solvers", "ddim", "--steps", "6", "--samples-per-class", "1", "--budgets", "0.5"]
SMALL += ["--methods", "every", "third_order", "skip_update", "--no-progress"]
SMALL += ["--seeds", "1", "2", "--tuning-seeds", "9"]


# Steps of the runs that tell the limit: few, as what is claimed here is that they are run.
LIMIT_STEPS = (12, 6)


def offline():
    raise RuntimeError("the weights are not there")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One thread, no download of weights, and a limit that is soon known."""
    monkeypatch.setattr(features, "fetch", offline)
    monkeypatch.setattr(problem, "LIMIT_STEPS", LIMIT_STEPS)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Stopping(torch.nn.Module):
    """The shipped model, which raises at one of its calls."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        super().__init__()
        self.model, self.left, self.error = demo_model.load_demo_model(), at, error

    def forward(self, *inputs, **conditioning):
        self.left -= 1
        if self.left < 0:
            raise self.error("stopped")
        return self.model(*inputs, **conditioning)


@pytest.fixture
def stop(monkeypatch):
    """stop(at, error): from now on the shipped model raises at its call number `at`."""

    def set_up(at: int, error: type[BaseException] = AssertionError) -> None:
        model = Stopping(at, error)
        monkeypatch.setattr(demo_model, "load_demo_model", lambda *_: model)

    return set_up


def read(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "fidelity.csv").open()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, int]:
    """The folder of a finished run, and how often it called the model."""
    out, model = tmp_path_factory.mktemp("lab") / "made" / "here", Stopping(10**6, AssertionError)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "fetch", offline)
        patch.setattr(problem, "LIMIT_STEPS", LIMIT_STEPS)
        patch.setattr(demo_model, "load_demo_model", lambda *_: model)
        assert main([*SMALL, "--out", str(out), "--threads", "1"]) == 0
    return out, 10**6 - model.left


@pytest.fixture
def done(finished) -> Path:
    return finished[0]


def test_a_run_writes_its_table_and_its_pictures(done):
    rows = read(done)
    assert list(rows[0]) == list(table.COLUMNS)
    assert [(r["method"], r["setting"]) for r in rows[:2]] == [("full", "6"), ("every", "2")]
    full, every = rows[:2]
    assert (full["budget"], full["samples"], full["nfe_mean"]) == ("1", "20", "6")
    assert (full["psnr_db"], full["identical"], full["ssim"]) == ("", "20", "1")
    assert every["nfe_min"] == every["nfe_max"] == "3"
    low, mean, high = (float(every[f"psnr_db{end}"]) for end in ("_low", "", "_high"))
    assert 10 < float(every["worst_tenth_db"]) < low < mean < high < 60
    assert full["lpips"] == full["kid"] == every["lpips"] == "", "no weights"
    assert math.isclose(
        float(every["speedup"]), float(full["wall_s"]) / float(every["wall_s"]), rel_tol=1e-4
    )
    for name in PICTURES:
        with Image.open(done / name) as image:
            assert len(image.convert("RGB").getcolors(2**24)) > 50, name


@pytest.mark.parametrize("solver", ["ddim", "flow"])
def test_the_distance_to_the_limit_is_told_beside_that_to_the_full_run(solver, tmp_path):
    """Of all methods, against a run of many steps made here once more."""
    words = ["--solvers", solver, "--methods", "every", "--seeds", "1"]
    assert main([*SMALL, *words, "--out", str(tmp_path)]) == 0
    batch = problem.shipped(solver, 6, 1).batch(1)

    def images(name, steps, config):
        result = ours.sampled(config)(problem.shipped(name, steps, 1), batch)
        return result.latents

    if solver == "flow":
        limit = 2 * images("flow", 12, ours.NEVER) - images("flow", 6, ours.NEVER)
    else:
        limit = images("dpm2m", 12, ours.NEVER)
    expected = [
        psnr(images(solver, 6, config).clamp(-1, 1), limit.clamp(-1, 1)).double()
        for config in (ours.NEVER, AdaptiveConfig(criterion="every(2)"))
    ]
    rows = read(tmp_path)
    for row, db in zip(rows, expected, strict=True):
        assert float(row["limit_db"]) == pytest.approx(db.mean().item(), abs=2e-3)
        assert float(row["limit_worst_tenth_db"]) == pytest.approx(db.min().item(), abs=2e-3)
        lost = expected[0].mean() - db.mean()
        assert float(row["limit_lost_db"]) == pytest.approx(lost.item(), abs=4e-3)
    assert float(rows[1]["limit_lost_db"]) > 1


def test_budgets_above_one_are_calls(tmp_path):
    words = ["--steps", "6", "8", "--budgets", "3", "0.25", "--methods", "fewer_steps"]
    assert main([*SMALL, *words, "--seeds", "1", "--out", str(tmp_path)]) == 0
    calls = [(r["steps"], r["nfe_mean"]) for r in read(tmp_path) if r["method"] != "full"]
    assert calls == [("6", "3"), ("6", "2"), ("8", "3"), ("8", "2")]


def test_a_second_start_computes_nothing(done, stop, capsys):
    before = (done / "fidelity.csv").read_bytes()
    stop(0)
    assert main([*SMALL, "--out", str(done), "--json"]) == 0
    assert (done / "fidelity.csv").read_bytes() == before
    out, err = capsys.readouterr()

    def refuse(constant):
        raise ValueError(f"JSON has no {constant}")

    rows = json.loads(out, parse_constant=refuse)
    assert [row["method"] for row in rows] == [row["method"] for row in read(done)]
    assert rows[0]["psnr_db"] is None
    assert err.count("no LPIPS and no KID") == 1
    assert "ddim-6, 3.0 calls: " in err


# While third_order is tuned; in the last method.
@pytest.mark.parametrize("share", [0.6, 0.97])
def test_an_interrupted_run_goes_on_to_the_same_table(
    share, tmp_path, finished, monkeypatch, capsys
):
    done, calls = finished
    with monkeypatch.context() as patch:
        model = Stopping(round(share * calls), KeyboardInterrupt)
        patch.setattr(demo_model, "load_demo_model", lambda *_: model)
        assert main([*SMALL, "--out", str(tmp_path)]) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "fidelity.csv").exists()
    assert not list(tmp_path.rglob(".unfinished*"))
    for path in tmp_path.rglob("*.npz"):
        assert zipfile.ZipFile(path).testzip() is None
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert ("third_order" in {path.name.split("-")[0] for path in stored}) == (share > 0.9)
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in stored.items())
    timed = ("wall_s", "speedup")
    for row, other in zip(read(tmp_path), read(done), strict=True):
        assert {k: v for k, v in row.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "made" / "record"
    with appearing(path) as unfinished:
        unfinished.write_text("old")
    with pytest.raises(KeyboardInterrupt), appearing(path) as unfinished:
        unfinished.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["record"]


def test_other_options_are_other_records(done, tmp_path):
    first = run.Records(tmp_path, {"samples_per_class": 1})
    assert run.Records(tmp_path, {"samples_per_class": 1}).folder == first.folder
    assert run.Records(tmp_path, {"samples_per_class": 2}).folder != first.folder


def test_records_without_features_are_completed_without_the_network(done, stop, monkeypatch):
    def embed(images, device):  # [B, 1280]
        return images.flatten(1).repeat(1, 2)[:, :1280]

    monkeypatch.setattr(features, "fetch", lambda: {})
    monkeypatch.setattr(
        features, "lpips", lambda a, b, device: (a - b).abs().flatten(1).mean(1).double()
    )
    monkeypatch.setattr(features, "efficientnet_features", embed)
    stop(0)
    assert main([*SMALL, "--out", str(done)]) == 0
    full, every, *_ = read(done)
    assert float(full["lpips"]) == 0 and float(every["lpips"]) > 0
    assert (full["kid"], full["kid_std"]) == ("", ""), "of the full run against itself"
    assert all(row["kid"] and row["kid_std"] for row in read(done)[1:])
    assert all(row["kid_other"] and row["kid_other_std"] for row in read(done))


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["ddim", "flow"])
def test_a_network_on_a_gpu_serves_every_method(solver, tmp_path):
    """With the calls that patterns make on the CPU and, to a rounding, the images."""
    calls = {"on the GPU": [], "on the CPU": []}
    words = ["--solvers", solver, "--steps", "12", "--samples-per-class", "1", "--no-progress"]
    words += ["--budgets", "0.5", "--seeds", "1", "--tuning-seeds", "9", "--methods"]
    words += ["every", "every+linear, repair", "taylorseer", "sada", "deepcache"]
    for name, device in (("on the GPU", "cuda"), ("on the CPU", "cpu")):
        assert main([*words, "--device", device, "--out", str(tmp_path / name)]) == 0
        calls[name] = read(tmp_path / name)
    for there, here in zip(*calls.values(), strict=True):
        assert (there["method"], there["nfe_mean"]) == (here["method"], here["nfe_mean"])
        assert float(there["limit_db"]) == pytest.approx(float(here["limit_db"]), abs=0.1)


@pytest.mark.parametrize("shape", ["smooth", "steep", "steps"])
def test_tuning_meets_its_budgets(shape):
    asked = []

    def nfe_of(setting):
        asked.append(setting)
        share = (math.log10(setting) + 5) / 4.5  # 0 to 1
        if shape == "steep":
            share = 1 / (1 + math.exp(-25 * (share - 0.6)))
        calls = 50 - 41 * share
        return round(calls) if shape == "steps" else calls

    budgets = [10.0, 13.0, 16.0, 20.0, 25.0]
    found = tune.tune(nfe_of, (1e-5, 10**-0.5), budgets)
    assert list(found) == budgets
    assert len(asked) == len(set(asked)) <= tune.POINTS + 3 * len(budgets)
    for budget, setting in found.items():
        assert setting in asked
        assert abs(nfe_of(setting) - budget) <= tune.tolerance(budget)


def test_tuning_gives_what_is_closest_where_a_budget_cannot_be_met():
    def nfe_of(setting):
        return 30.0 if setting < 0.3 else 12.0  # as a rule that decides for a whole batch

    found = tune.tune(nfe_of, (0.01, 1.0), [5.0, 20.0, 28.0, 40.0])
    assert [nfe_of(found[b]) for b in (5.0, 20.0, 28.0, 40.0)] == [12.0, 12.0, 30.0, 30.0]
    # At a floor, the smallest of the settings that reach it.
    assert found[5.0] < 1.0
    with pytest.raises(ValueError, match=r"knob must be \(least, most\) with 0 < least"):
        tune.tune(nfe_of, (0.0, 1.0), [5.0])
    with pytest.raises(ValueError, match=r"budgets must be given and positive, got \[0\]"):
        tune.tune(nfe_of, (0.01, 1.0), [0])


def test_the_figures_of_a_method_equal_those_made_by_hand():
    db = [30.0, 20.0, 40.0, math.inf, 35.0, 25.0, 45.0, 50.0, 55.0, 31.0, 33.0, math.inf]
    arrays = {
        "nfe": torch.tensor([4.0, 6.0] * 6).view(2, 6),
        "psnr": torch.tensor(db, dtype=torch.float64).view(2, 6),
        "ssim": torch.tensor([0.9, 0.7] * 6).double().view(2, 6),
        "nonfinite": torch.tensor([True] + [False] * 11).view(2, 6),
        "wall_s": torch.tensor([2.0, 4.0]),
    }
    got = table.figures(arrays)
    assert (got["samples"], got["identical"], got["nonfinite"]) == (12, 2, 1)
    assert (got["nfe_mean"], got["nfe_std"], got["nfe_min"], got["nfe_max"]) == (5, 1, 4, 6)
    assert got["psnr_db"] == pytest.approx(36.4)
    assert got["worst_tenth_db"] == pytest.approx(22.5), "2 of 12 are the worst tenth"
    assert got["ssim"] == pytest.approx(0.8) and got["lpips"] is None and got["wall_s"] == 3
    # The normal interval of the mean, standard error 3.25, within the noise of the bootstrap.
    differs = np.array([x for x in db if x < math.inf])
    error = 1.96 * differs.std() / math.sqrt(len(differs))
    assert got["psnr_db_low"] == pytest.approx(36.4 - error, abs=0.7)
    assert got["psnr_db_high"] == pytest.approx(36.4 + error, abs=0.7)
    assert 20 <= got["worst_tenth_db_low"] <= 22.5 <= got["worst_tenth_db_high"]
    assert table.figures(arrays) == got
    identical = table.figures({**arrays, "psnr": torch.full((2, 6), math.inf)})
    assert identical["psnr_db"] is identical["worst_tenth_db_low"] is None


def test_the_summary_names_the_best_within_a_budget():
    def row(method, budget, nfe, db):
        base = {
            "solver": "ddim",
            "steps": 50,
            "dtype": "float32",
            "method": method,
            "budget": budget,
        }
        return {**base, "nfe_mean": nfe, "psnr_db": db}

    rows = [row("full", 1, 50, None), row("a", 0.2, 10.2, 30.0), row("b", 0.2, 12.0, 99.0)]
    rows += [row("a", 0.4, 20.0, 35.0), row("b", 0.4, 19.0, None), row("c", 0.4, 20.0, 36.0)]
    assert table.summary(rows, best=2).splitlines() == [
        "ddim-50, 10.0 calls: a 30.0",
        "ddim-50, 20.0 calls: b inf, c 36.0",
    ]


def test_fixed_settings_lie_around_their_budget():
    problem = type("Problem", (), {"steps": 50})
    assert [ours.periods(problem, b) for b in (10.0, 13.0, 25.0, 0.2 * 50, 50.0)] == [
        [5],
        [3, 4],
        [2],
        [5],
        [],
    ]


TINY = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """ddpm: an unconditional pipeline; classes: a bare network with 6 classes and a scheduler."""
    root = tmp_path_factory.mktemp("models")
    diffusers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    pipeline = diffusers.DDPMPipeline(diffusers.UNet2DModel(**TINY), diffusers.DDPMScheduler())
    pipeline.save_pretrained(root / "ddpm")
    diffusers.UNet2DModel(**TINY, num_class_embeds=6).save_pretrained(root / "classes")
    own = diffusers.DDPMScheduler(variance_type="learned_range")
    own.save_pretrained(root / "classes" / "scheduler")
    return root


def test_the_laboratory_runs_on_a_model_folder(models, tmp_path):
    words = ["--model", str(models / "ddpm"), "--solvers", "own", "euler", "--steps", "5"]
    words += ["--samples-per-class", "2", "--seeds", "1", "--budgets", "0.6", "--no-progress"]
    assert main([*words, "--methods", "every", "--out", str(tmp_path)]) == 0
    rows = read(tmp_path)
    assert [(r["solver"], r["method"], r["samples"], r["nfe_mean"]) for r in rows] == [
        ("own", "full", "2", "5"),
        ("own", "every", "2", "3"),
        ("euler", "full", "2", "5"),
        ("euler", "every", "2", "3"),
    ]


@pytest.mark.parametrize("solver", ["own", "ddim", "euler", "dpm2m", "unipc"])
def test_a_bare_network_is_conditioned_on_its_classes(solver, models):
    given = (models / "classes", solver, 4, 2)
    problem = folder.problem_from_folder(*given)
    batch = problem.batch(3)
    assert batch.noise.shape == (12, 3, 16, 16) and batch.unconditional is None
    assert batch.labels.tolist() == [c for c in range(6) for _ in range(2)]
    assert torch.equal(batch.noise, problem.batch(3).noise)
    assert not torch.equal(batch.noise, problem.batch(4).noise)
    guided = folder.problem_from_folder(*given, guidance_scale=2.0)
    batch = guided.batch(3)
    assert batch.labels.max() == 4, "the last class stands for none"
    assert set(batch.unconditional["class_labels"].tolist()) == {5}
    outcome = ours.sampled(AdaptiveConfig(criterion="every(2)"))(guided, batch)
    assert outcome.nfe.tolist() == [2] * 10 and outcome.latents.isfinite().all()


def test_a_text_to_image_folder_gives_what_its_pipeline_gives(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    files = (str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    text = transformers.CLIPTextConfig(**sizes, num_hidden_layers=1, vocab_size=54, **ends)
    blocks = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    latent = {**TINY, "sample_size": 8, "in_channels": 4, "out_channels": 4}
    latent |= dict(zip(("down_block_types", "up_block_types"), blocks, strict=True))
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=[8], norm_num_groups=4),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=transformers.CLIPTokenizer(*files, model_max_length=77),
        unet=diffusers.UNet2DConditionModel(**latent, cross_attention_dim=32, attention_head_dim=4),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path / "model")
    prompts = ["a cat", "the dog on a mat"]
    problem = folder.problem_from_folder(tmp_path / "model", "own", 4, 1, 3.0, prompts)
    batch = problem.batch(1)
    latents = ours.sampled(ours.NEVER)(problem, batch).latents
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompts,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=batch.noise,
        output_type="pt",
    ).images
    # The pipeline gives [0, 1].
    torch.testing.assert_close(problem.decode(latents), 2 * expected - 1, atol=1e-4, rtol=0)
    assert problem.group_names == tuple(prompts)
    with pytest.raises(ValueError, match="prompts must name prompts for a text-to-image model"):
        folder.problem_from_folder(tmp_path / "model")


def test_folders_and_options_that_do_not_fit_are_refused(models, tmp_path):
    with pytest.raises(ValueError, match=r"model must be a folder with model_index\.json"):
        folder.problem_from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"solver must be one of own, ddim, .* got 'flow'"):
        folder.problem_from_folder(models / "ddpm", "flow")
    with pytest.raises(ValueError, match=r"guidance_scale must be left out .* got 3\.0"):
        folder.problem_from_folder(models / "ddpm", guidance_scale=3.0)
    with pytest.raises(ValueError, match="prompts must be left out here, got 1"):
        folder.problem_from_folder(models / "ddpm", prompts=["a cat"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1", "2", "--tuning-seeds", "2"], "must be given and share none, got [1, 2]"),
        (["--solvers", "heun"], "solvers must be of ddim, euler"),
        (["--solvers", "own"], "solvers must be of ddim, euler"),
        (["--methods", "magic"], "methods must be of full, fewer_steps"),
        (["--prompts", "words.txt"], "prompts need a model, got words.txt"),
        (["--device", "nowhere"], "device must be one that torch can use, got 'nowhere'"),
        (["--device", "meta"], "device must be one that torch can use, got 'meta'"),
        (["--model", "nowhere"], "model must be a folder with model_index.json"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, message, tmp_path, capsys, stop):
    stop(0)
    assert main([*SMALL, *words, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "0", "must be a whole number from 1 to 1000, got '0'"),
        (
            "--budgets",
            "1001",
            "must be a share from 0.001 to 1, or more than 1 for calls, got '1001'",
        ),
        ("--budgets", "0", "must be a share from 0.001 to 1, or more than 1 for calls, got '0'"),
        ("--seeds", "-1", "must be a whole number of at least 0, got '-1'"),
        ("--guidance", "nan", "must be a finite number of at least 0, got 'nan'"),
    ],
)
def test_arguments_out_of_range_are_refused(option, value, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main([f"{option}={value}"])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (3, "the limit, 1xdpm2m-12, failed at seed 1: ValueError: stopped"),
        (3 * LIMIT_STEPS[0] + 14, "full at 6 failed on ddim-6, seed 9: ValueError: stopped"),
    ],
)
def test_a_failing_method_is_named(at, told, tmp_path, stop, capsys):
    stop(at, ValueError)
    assert main([*SMALL, "--out", str(tmp_path)]) == 1
    assert told in capsys.readouterr().err


def test_half_precision_is_measured_against_float32(tmp_path):
    words = ["--solvers", "ddim", "--steps", "20", "--methods", "every+linear", "defect, default"]
    words += ["--budgets", "0.5", "--samples-per-class", "1", "--seeds", "1", "--no-progress"]
    words += ["--dtypes", "bfloat16", "float32", "--threads", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    rows = {(r["dtype"], r["method"]): r for r in read(tmp_path)}
    assert len(rows) == 6
    full = rows["bfloat16", "full"]
    # The network's own rounding, and no other.
    assert 38 < float(full["psnr_db"]) < 60 and full["identical"] == "0"
    assert rows["float32", "full"]["identical"] == "10"
    for method in ("every+linear", "defect, default"):
        exact, half = rows["float32", method], rows["bfloat16", method]
        assert exact["independent_db"] == full["independent_db"] == ""
        both = float(half["independent_db"])
        assert both < min(float(full["psnr_db"]), float(exact["psnr_db"]))
        assert abs(float(half["psnr_db"]) - both) < 3


def test_dtypes_are_the_shipped_networks(tmp_path, capsys):
    assert main(["--model", str(tmp_path), "--dtypes", "float16", "--out", str(tmp_path)]) == 1
    assert (
        "dtypes are the shipped network's, got ['float16'] and a model" in capsys.readouterr().err
    )
