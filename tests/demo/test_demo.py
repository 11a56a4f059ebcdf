"""The command line as a user runs it, and the demo's report, table, sentence and pictures."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from adaptive_kernels import AdaptiveConfig, AdaptiveSampler, ops
from adaptive_kernels.__main__ import main
from adaptive_kernels.demo import model as demo_model
from adaptive_kernels.demo import run as demo
from adaptive_kernels.demo.pictures import samples_picture
from adaptive_kernels.demo.report import of_times, table, verdict
from adaptive_kernels.demo.run import FILES, run_demo
from adaptive_kernels.executors import capability
from adaptive_kernels.metrics import ssim
from adaptive_kernels.pictures import decisions_picture

STEPS = 10
# One thread: beside other tests on a small machine, OpenMP's barriers cost 50 times the work.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Skips some of so few steps, whatever the default is tuned to.
THRESHOLD = 0.02
SMALL = ["--steps", str(STEPS), "--samples-per-class", "1", "--seed", "3"]
SMALL += ["--threshold", str(THRESHOLD)]


def command(*words: str, **environment: str | None) -> subprocess.CompletedProcess:
    """environment: variables beside the usual ones; None takes one out."""
    line = [sys.executable, "-m", "adaptive_kernels", *words]
    given = {k: v for k, v in {**ENVIRONMENT, **environment}.items() if v is not None}
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=given)


def strict(text: str) -> dict:
    def refuse(constant: str):
        raise ValueError(f"JSON has no {constant}")

    return json.loads(text, parse_constant=refuse)


def pixels(path: Path) -> np.ndarray:  # [H, W, 3] uint8
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("first") / "made" / "here"
    given = ("demo", "--out", str(out), *SMALL, "--json")
    return out, command(*given, OMP_WAIT_POLICY=None)


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("second")
    given = ("demo", "--out", str(out), *SMALL, "--no-progress", "--rounds", "1")
    return out, command(*given, OMP_WAIT_POLICY="ACTIVE")


def test_threads_do_not_spin_unless_told_to(first, second):
    """The command sees to it itself; a policy of the user's own stays, and is told."""
    policies = [
        json.loads((out / "report.json").read_text())["settings"]["omp_wait_policy"]
        for out, _ in (first, second)
    ]
    assert policies == ["PASSIVE", "ACTIVE"]
    assert "OMP_WAIT_POLICY is ACTIVE: OpenMP's threads may spin" in second[1].stdout
    assert "OMP_WAIT_POLICY" not in first[1].stderr
    assert "one round: nothing tells how far times scatter" in second[1].stdout


def timed(scatter: float) -> dict:
    """A report whose rounds differ by so much at most."""
    settings = {"rounds": 2, "omp_wait_policy": "PASSIVE", "scatter_of": "defect"}
    report = made_up(full=(50, None), defect=(20, 40.0))
    return {**report, "settings": {**settings, "scatter": scatter}}


def test_a_table_whose_rounds_scatter_is_marked():
    calm, busy = timed(1.15), timed(2.4)
    assert "~" not in table(calm) and of_times(calm) == []
    assert re.findall(r"~\d\.\d\dx", table(busy)) and "| 1.00x" not in table(busy)
    (said,) = of_times(busy)
    assert said.startswith("~ times scatter: the two best rounds of defect are 140% apart")


def test_rounds_are_in_turns_and_their_scatter_is_that_of_the_worst_method():
    from adaptive_kernels.demo.method import Method, scatter

    methods = {name: Method.__new__(Method) for name in "ab"}
    methods["a"].rounds_s, methods["b"].rounds_s = [9.0, 1.05, 1.0], [2.0, 3.0, 2.5]
    assert scatter(methods) == (1.25, "b") and methods["b"].wall_s == 2.0
    methods["b"].rounds_s = [2.0]
    assert scatter(methods) == (1.05, "a")


def test_demo_writes_its_files_and_json_on_stdout(first):
    out, run = first
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES)
    report = strict(run.stdout)
    assert report == strict((out / "report.json").read_text())
    assert table(report) in run.stderr and verdict(report) in run.stderr
    assert "full: 100%" in run.stderr, "the bar names the method"


def test_demo_without_json_prints_the_table_and_no_bar(second):
    out, run = second
    assert run.returncode == 0, run.stderr
    report = strict((out / "report.json").read_text())
    assert run.stdout.startswith(table(report)) and verdict(report) in run.stdout
    assert "%|" not in run.stderr


def test_report_is_consistent(first):
    report = strict(first[1].stdout)
    methods, settings = report["methods"], report["settings"]
    full, defect, fewer = (methods[name] for name in ("full", "defect", "fewer_steps"))
    assert settings["num_inference_steps"] == STEPS and settings["seed"] == 3
    assert settings["torch"] == torch.__version__ and settings["cpu_count"] == os.cpu_count()
    for name, m in methods.items():
        assert m["nfe_min"] <= m["nfe_mean"] <= m["nfe_max"] <= m["num_inference_steps"], name
        # Counted by the network itself: two halves of the guidance for each of ten samples.
        assert m["network_rows"] == pytest.approx(2 * 10 * m["nfe_mean"]), name
        assert m["wall_s"] > 0
        assert m["speedup"] == pytest.approx(full["wall_s"] / m["wall_s"]), name
        assert (m["psnr_db"] is None) == (m["identical"] == 10), name
        if m["psnr_db"] is not None:
            assert m["psnr_db_worst_tenth"] <= m["psnr_db"], name
            assert m["ssim"] < 1, name
        if name.startswith("every("):
            k = int(name[6:-1])
            assert m["nfe_min"] == m["nfe_max"] == 1 + math.ceil((STEPS - 1) / k)
    assert full["nfe_min"] == full["nfe_max"] == STEPS
    assert full["speedup"] == 1 and full["identical"] == 10
    assert defect["nfe_mean"] < STEPS, "the settings are too small to see a skip"
    assert fewer["nfe_mean"] == fewer["num_inference_steps"] == round(defect["nfe_mean"])
    patterns = [methods[name]["nfe_mean"] for name in methods if name.startswith("every(")]
    assert min(patterns) <= defect["nfe_mean"]


def test_the_same_seed_gives_the_same_decisions_and_images(first, second):
    one, two = (strict((out / "report.json").read_text())["methods"] for out, _ in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        for key in ("nfe_mean", "nfe_min", "nfe_max", "psnr_db", "ssim", "network_rows"):
            assert one[name][key] == two[name][key], (name, key)
    assert np.array_equal(*(pixels(out / "decisions.png") for out, _ in (first, second)))


def test_pictures_show_what_the_sampler_gave(first):
    out, run = first
    methods = strict(run.stdout)["methods"]
    noise = torch.randn(10, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    conditions = [{"class_labels": y} for y in (torch.arange(10), torch.full((10,), 10))]
    latents = {}
    configs = {
        "full": AdaptiveConfig(criterion="never"),
        "defect": AdaptiveConfig(THRESHOLD, criterion="defect"),
    }
    for name, config in configs.items():
        sampler = AdaptiveSampler(demo_model.demo_scheduler(), STEPS, config, 2.0)
        result = sampler(demo_model.load_demo_model(), noise, *conditions, progress=False)
        latents[name] = result.latents.clamp(-1, 1).double()
    error = (latents["full"] - latents["defect"]).square().mean((1, 2, 3))
    # float32 sums may be ordered otherwise under another thread count.
    db = 10 * torch.log10(4 / error)
    assert methods["defect"]["psnr_db"] == pytest.approx(db.mean().item(), abs=0.01)
    assert methods["defect"]["psnr_db_worst_tenth"] == pytest.approx(db.min().item(), abs=0.01)
    similarity = ssim(latents["defect"], latents["full"]).mean().item()
    assert methods["defect"]["ssim"] == pytest.approx(similarity, abs=1e-4)

    picture = pixels(out / "samples.png")
    # Ten samples of 64 pixels and three rows of them, with labels around.
    assert 640 < picture.shape[1] < 1100 and 192 < picture.shape[0] < 400
    image = (latents["full"][0, 0].numpy() + 1) / 2 * 255
    window = np.lib.stride_tricks.sliding_window_view(picture[:114, 100:214, 0], (64, 64))
    zoomed = image.repeat(2, 0).repeat(2, 1)
    distance = np.abs(window.astype(np.float32) - zoomed).max((-1, -2))
    assert (distance < 1.5).sum() == 1, "the first full sample is drawn once, pixel by pixel"
    assert pixels(out / "decisions.png").std() > 20


def test_threshold_max_skip_guidance_and_threads_arrive(tmp_path):
    torch.set_num_threads(2)
    options = {"samples_per_class": 1, "num_inference_steps": STEPS, "progress": False}
    report = run_demo(tmp_path, **options, threshold=1e9, max_skip=2, guidance_scale=1.0, threads=1)
    defect = report["methods"]["defect"]
    # Three forced calls and then every third step: 0, 1, 2, 5, 8.
    assert defect["nfe_min"] == defect["nfe_max"] == 5
    assert defect["network_rows"] == 10 * 5, "no guidance, no unconditional half"
    assert report["settings"]["threads"] == 1 and torch.get_num_threads() == 2
    report = run_demo(tmp_path, **options, threshold=0.0, threads=1, rounds=1)
    assert report["settings"]["rounds"] == 1
    defect = report["methods"]["defect"]
    assert defect["nfe_mean"] == STEPS and defect["psnr_db"] is None and defect["identical"] == 10
    assert "skipped nothing" in verdict(report)


def test_a_failure_leaves_the_old_files_and_nothing_half_made(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("the disk is full")

    (tmp_path / "samples.png").write_text("old")
    monkeypatch.setattr(demo, "decisions_picture", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        run_demo(tmp_path, samples_per_class=1, num_inference_steps=4, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["samples.png"]
    assert (tmp_path / "samples.png").read_text() == "old"


def test_an_overflow_is_named(tmp_path, capsys):
    with pytest.warns(RuntimeWarning, match="NaN or Inf"):
        status = main(["demo", "--out", str(tmp_path), *SMALL, "--guidance", "1e30"])
    assert status == 1
    assert re.search(r"error: full gave NaN or Inf in \d+ of 10 samples", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "place", ["a file", "below a file", "a folder in place of a file", "/proc"]
)
def test_a_bad_folder_is_refused_before_any_sampling(place, tmp_path, monkeypatch, capsys):
    def fail():
        raise AssertionError("sampled before the folder was looked at")

    monkeypatch.setattr(demo_model, "load_demo_model", fail)
    out = tmp_path / "taken"
    if place == "a folder in place of a file":
        (out / "samples.png").mkdir(parents=True)
    else:
        out.write_text("mine")
    # Nobody, root included, makes folders in /proc.
    out = {"below a file": out / "deeper", "/proc": Path("/proc/demo")}.get(place, out)
    assert main(["demo", "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert "demo: error: out must" in message and str(out) in message
    assert not list(tmp_path.rglob(".unfinished*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo"], "arguments are required: --out"),
        (["demo", "--out", "x", "--steps", "0"], "--steps: must be a whole number from 1 to 1000"),
        (["demo", "--out", "x", "--steps", "1001"], "--steps: .* got '1001'"),
        (["demo", "--out", "x", "--steps", "ten"], "--steps: .* got 'ten'"),
        (["demo", "--out", "x", "--samples-per-class", "0"], "--samples-per-class: .* least 1"),
        (["demo", "--out", "x", "--seed", "-1"], "--seed: .* of at least 0, got '-1'"),
        (["demo", "--out", "x", "--guidance", "nan"], "--guidance: must be a finite number"),
        (["demo", "--out", "x", "--threshold", "-0.1"], "--threshold: .* got '-0.1'"),
        (["demo", "--out", "x", "--threshold", "inf"], "--threshold: must be a finite number"),
        (["demo", "--out", "x", "--max-skip", "0"], "--max-skip: .* least 1, got '0'"),
        (["demo", "--out", "x", "--rounds", "0"], "--rounds: .* least 1, got '0'"),
        (["demo", "--out", "x", "--speed", "9"], "unrecognized arguments: --speed"),
        (["paint"], "invalid choice: 'paint'"),
    ],
)
def test_bad_arguments(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_samples_per_class_is_checked_in_python_too(tmp_path):
    with pytest.raises(ValueError, match="samples_per_class must be at least 1, got 0"):
        run_demo(tmp_path, samples_per_class=0)


def test_ctrl_c_exits_130_without_a_traceback(tmp_path):
    line = [sys.executable, "-m", "adaptive_kernels", "demo", "--out", str(tmp_path)]
    run = subprocess.Popen(
        [*line, "--steps", "1000", "--samples-per-class", "2"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        # A shell's background job, such as this test may be part of, ignores the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    seen = b""
    try:
        while b"full:" not in seen and (piece := os.read(run.stderr.fileno(), 4096)):
            seen += piece
        assert [p.name.startswith(".unfinished") for p in tmp_path.iterdir()] == [True]
        run.send_signal(signal.SIGINT)
        _, rest = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130
    assert b"interrupted" in rest and b"Traceback" not in seen + rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_reader_that_has_enough_ends_info_quietly(reader):
    line = f"{sys.executable} -m adaptive_kernels info | {reader}; echo ${{PIPESTATUS[0]}} >&2"
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT)
    status = run.stderr.split()
    # A pipe that holds all of it need not break.
    assert status in (["141"], ["0"]), run.stderr
    assert reader == "true" or run.stdout.startswith("adaptive_kernels ")


def test_output_that_nobody_takes_is_no_error(monkeypatch, tmp_path):
    """A pipe whose reader is gone; it is found at the flush, the output being short."""
    with open(tmp_path / "out", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, stdout.fileno())
        os.close(write)
        assert main(["info"]) == 141


def test_info_says_what_serves_each_device(capsys):
    run = command("info", "--json")
    info = ops.info()
    info["libraries"]["_graph"] = capability.loop_module()
    info["executors"] = capability.info()
    assert run.returncode == 0 and strict(run.stdout) == info
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for device, executors in info["executors"].items():
        for name, executor in executors.items():
            works = "yes" if executor["works"] else "no"
            assert f"  {device:8} {name:7} {works}: {executor['why']}" in lines
    assert info["version"] in lines[0] and info["torch"] in lines[0]
    for part in (*info["libraries"].items(), *info["serves"].items()):
        name, said = part[0], [str(v) for v in part[1].values() if not isinstance(v, bool)]
        line = next(line for line in lines if line.split()[0] == name)
        assert all(words in line for words in said), line


def test_no_command_prints_help_and_version_its_number(capsys):
    run = command()
    assert run.returncode == 0 and "demo" in run.stdout and "info" in run.stdout
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"adaptive_kernels {ops.info()['version']}\n"


def made_up(**methods: tuple[float, float | None]) -> dict:
    return {
        "methods": {
            name.replace("_", "(", 1) + ")" if name.startswith("every") else name: {
                "nfe_mean": nfe,
                "nfe_min": math.floor(nfe),
                "nfe_max": math.ceil(nfe),
                "wall_s": nfe / 10,
                "speedup": 50 / nfe,
                "psnr_db": db,
                "psnr_db_worst_tenth": None if db is None else db - 5,
                "ssim": 0.9,
            }
            for name, (nfe, db) in methods.items()
        }
    }


def test_table_is_aligned_markdown_and_shows_a_dash_for_what_is_missing():
    text = table(made_up(full=(50, None), third_order=(20.5, 31.239), every_2=(25, None)))
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[1][0].strip("-") == "" and all(re.fullmatch("-+:", c) for c in cells[1][1:])
    assert cells[2][:2] == ["full", "50.00"] and cells[2][-3:] == ["-", "-", "-"]
    assert cells[3] == [
        *("third_order", "20.50", "20", "21", "2.05", "2.44x", "31.24", "26.24", "0.9000")
    ]
    assert cells[4][0] == "every(2)" and cells[4][-3:] == ["-", "-", "0.9000"]


def test_verdict_names_the_best_at_equal_nfe():
    full = (50, None)
    said = verdict(made_up(full=full, defect=(20, 33), fewer_steps=(20, 31), every_2=(25, 40)))
    assert "defect is best by 2.0 dB" in said and "every(2)" not in said
    said = verdict(made_up(full=full, defect=(20, 31), released=(20.9, 34), every_1=(40, 50)))
    assert "released is best by 3.0 dB" in said and "(NFE 20.9)" in said
    # Half way in log NFE between 16 and 25 is 20; half way between 30 and 40 dB is 35.
    said = verdict(made_up(full=full, defect=(20, 34), every_2=(25, 40), every_3=(16, 30)))
    assert "every(3)-every(2) interpolated is best by 1.0 dB" in said and "35.00 dB" in said


def test_verdict_without_a_winner():
    full = (50, None)
    said = verdict(made_up(full=full, defect=(20, 31), fewer_steps=(20, 31.05)))
    assert "the first two draw" in said and "is best" not in said
    said = verdict(made_up(full=full, defect=(20, None), fewer_steps=(20, None)))
    assert "the first two draw" in said
    assert "skipped nothing" in verdict(made_up(full=full, defect=(50, None)))
    said = verdict(made_up(full=full, defect=(20, 31), fewer_steps=(22, 40)))
    assert said.startswith("Nothing else ran") and "fewer_steps" not in said


def test_samples_picture_places_every_image_and_its_difference(tmp_path):
    labels = torch.tensor([1, 0, 1])
    # Blue, so that no smoothed letter has one of these colours.
    red = torch.tensor([20.0, 60.0, 100.0]) / 255
    images = torch.zeros(3, 3, 8, 8)
    images[:, 0] = red[:, None, None]
    images[:, 2] = 1
    images = images * 2 - 1
    other = images.clone()
    other[:, 1] += 0.27
    path = tmp_path / "samples.png"
    samples_picture(path, {"one": images, "two": other}, labels, ("a", "b"), ["x"] * 3)
    picture = pixels(path).astype(int)
    places = []
    for value in (20, 60, 100):
        at = np.argwhere((picture == (value, 0, 255)).all(-1))
        assert len(at) == 64 * 64, "8x8 images are drawn at 64x64"
        places.append(at.min(0))
    # Class a first, then both of class b in their order, on one line.
    assert len({y for y, _ in places}) == 1
    assert places[1][1] < places[0][1] < places[2][1]
    # 0.09 brighter on the mean of the channels, times 10: nine tenths of the way from 0 to red.
    red = colormaps["RdBu_r"](0.95, bytes=True)[:3]
    assert (np.abs(picture - red).max(-1) <= 2).sum() == 3 * 64 * 64


def test_samples_picture_draws_the_first_samples_of_a_class_in_bands(tmp_path):
    path = tmp_path / "samples.png"
    images = torch.rand(50, 1, 16, 16) * 2 - 1
    samples_picture(path, {"one": images}, torch.arange(10).repeat(5), per_class=4)
    height, width = pixels(path).shape[:2]
    assert 5 * 4 * 64 < width < 6 * 4 * 64 + 200 and 2 * 64 < height < 3 * 64 + 60


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ({}, None, "rows must be images"),
        ({"a": torch.zeros(2, 1, 8, 8), "b": torch.zeros(2, 1, 8, 9)}, None, "of one shape"),
        ({"a": torch.zeros(2, 2, 8, 8)}, None, r"\[B, 1 or 3, H, W\]"),
        ({"a": torch.zeros(0, 1, 8, 8)}, None, "rows must be images"),
        ({"a": torch.zeros(2, 1, 8, 8)}, torch.zeros(3), r"labels must be \[2\]"),
    ],
)
def test_samples_picture_refuses(rows, labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        samples_picture(tmp_path / "samples.png", rows, labels)
    assert not list(tmp_path.iterdir())


def share(path: Path, color: str) -> float:
    """The share of the picture that is clearly blue, clearly red or the grey of no value."""
    r, g, b = np.moveaxis(pixels(path).astype(int), -1, 0)
    masks = {
        "blue": b - r > 40,
        "red": r - b > 40,
        "grey": (r == 204) & (g == 204) & (b == 204),
        "black": (r < 40) & (g < 40) & (b < 40),
    }
    return masks[color].mean()


@pytest.mark.parametrize(
    ("value", "color"), [(0.1, "blue"), (0.0, "blue"), (10, "red"), (math.inf, "red")]
)
def test_decisions_picture_colours_the_score(value, color, tmp_path):
    path = tmp_path / "decisions.png"
    score = torch.full((20, 12), float(value))
    score[:5] = math.nan
    decisions_picture(path, torch.zeros(20, 12, dtype=torch.bool), score)
    colors = {name: share(path, name) for name in ("blue", "red", "grey")}
    other = {"blue": "red", "red": "blue"}[color]
    # A quarter of the steps has no value; the curves, labels and the bar are the rest.
    assert colors[color] > 2 * colors["grey"] > 0.1 > colors[other]


def test_decisions_picture_marks_refreshes_and_counts_them(tmp_path):
    score = torch.full((20, 12), math.nan)
    black = []
    for calls in (0, 5, 20):
        refreshed = torch.zeros(20, 12, dtype=torch.bool)
        refreshed[:calls] = True
        decisions_picture(tmp_path / "d.png", refreshed, score, torch.arange(12) % 3, "abc", "t")
        black.append(share(tmp_path / "d.png", "black"))
    assert black[0] < black[1] < black[2]
    # Equal additions of ink for equal numbers of dots, up to the curve above.
    assert (black[2] - black[1]) / (black[1] - black[0]) == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (2, 100), (1000, 2), (50, 700)])
def test_decisions_picture_of_any_size_stays_a_picture(steps, batch, tmp_path):
    path = tmp_path / "decisions.png"
    score = torch.rand(steps, batch) * 2
    decisions_picture(path, score >= 1, score)
    height, width = pixels(path).shape[:2]
    assert 400 < width < 2500 and 300 < height < 2700


def test_decisions_picture_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"must be \[T, B\], got \(4, 2\) and \(4, 3\)"):
        decisions_picture(tmp_path / "x.png", torch.zeros(4, 2).bool(), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"got \(0, 2\)"):
        decisions_picture(tmp_path / "x.png", torch.zeros(0, 2).bool(), torch.zeros(0, 2))
