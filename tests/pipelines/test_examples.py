"""The examples, as somebody with weights runs them, on a small pipeline saved to a folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.pipelines.cases import CASES

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name, *arguments):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(("name", "case"), [("sdxl.py", "sdxl"), ("sd15.py", "sd15")])
def test_an_example_compares_plain_and_adaptive(name, case, tmp_path):
    CASES[case].make().save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    done = example(
        name,
        *("--model", tmp_path / "model", "--out", out, "--device", "cpu", "--rounds", 1),
        *("--prompt", "a red ball", "--prompt", "blue", "--steps", 24, "--size", 32),
        *("--rule", "every(3)", "--scheduler", "DPMSolverMultistepScheduler"),
    )
    assert done.returncode == 0, done.stderr
    assert "2 samples: 8 of 24 steps called the network, 16 skipped it" in done.stdout
    assert "x (medians of 1" in done.stdout
    for picture in ("plain", "adaptive", "difference"):
        for k in (0, 1):
            assert Image.open(out / f"{picture}-{k}.png").size == (32, 32)
    assert Image.open(out / "decisions.png").width > 100
    report = json.loads((out / "report.json").read_text())
    assert report["last"]["networks"]["unet"] == {"made": 8, "skipped": 16}
    assert len(report["comparison"]["psnr_db"]) == 2


def test_an_example_prints_json_and_refuses_by_name(tmp_path):
    CASES["sd15"].make().save_pretrained(tmp_path / "model")
    usual = ("--model", tmp_path / "model", "--out", tmp_path / "out", "--device", "cpu")
    done = example("sd15.py", *usual, "--steps", 8, "--rounds", 1, "--size", 32, "--json")
    assert json.loads(done.stdout)["pipeline"] == "StableDiffusionPipeline"
    wrong = example("sd15.py", *usual, "--rule", "sometimes")
    assert wrong.returncode and "criterion must be 'third_order'" in wrong.stderr
    wrong = example("sd15.py", *usual, "--scheduler", "Nobody")
    assert wrong.returncode and "--scheduler must be a scheduler of diffusers" in wrong.stderr
