"""`serve-file`: a file of requests, one image each, resumed where it stood."""

import json

import pytest
import torch
from PIL import Image

import adaptive_kernels as ak
from adaptive_kernels.__main__ import main
from adaptive_kernels.demo import model as demo
from adaptive_kernels.demo.model import FashionUNet
from tests.support.pipelines import image
from tests.support.pipelines.parts import SIZE, scheduler

STEPS = ("--steps", "8")


def write(folder, *lines):
    path = folder / "requests.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def serve(path, out, *options):
    return main(["serve-file", str(path), "--out", str(out), "--no-progress", *STEPS, *options])


def summary(capsys):
    return json.loads(capsys.readouterr().out)


def test_images_are_those_of_the_sampler_and_a_second_run_makes_none_again(tmp_path, capsys):
    lines = [
        {"id": "a", "seed": 3, "class": "bag"},
        {"seed": 4, "class": 2, "guidance_scale": 1.0},
        {"id": 7, "seed": 5, "class": "Ankle Boot", "threshold": 0.01},
    ]
    path, out = write(tmp_path, *lines), tmp_path / "made" / "here"
    assert serve(path, out, "--json", "--slots", "2") == 0
    got = summary(capsys)
    assert (got["requests"], got["made"], got["kept"], got["failed"]) == (3, 3, 0, [])
    assert {p.name for p in out.iterdir()} == {"a.png", "00002.png", "7.png"}
    sampler = ak.AdaptiveSampler(demo.demo_scheduler(), 8, guidance_scale=2.0)
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    labels = [{"class_labels": torch.tensor([n])} for n in (8, demo.NULL_LABEL)]
    with torch.no_grad():
        result = sampler(demo.load_demo_model(), noise, *labels, progress=False)
    with Image.open(out / "a.png") as picture:
        levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        assert picture.text["nfe"] == f"{int(result.nfe)} of 8"
    values = levels.view(32, 32) / 127.5 - 1
    # Half a level of 256, and the network's rounding in another batch.
    assert (values - result.latents[0, 0].clamp(-1, 1)).abs().max() < 0.5 / 127.5 + 1e-4

    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()}
    lines[1]["seed"] = 9
    assert serve(write(tmp_path, *lines), out, "--json") == 0
    got = summary(capsys)
    assert (got["made"], got["kept"]) == (1, 2)
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"00002.png"}
    # Other settings are other images; what is no image is made anew.
    (out / "a.png").write_bytes(b"half an im")
    assert serve(path, out, "--json", "--guidance", "2") == 0
    assert summary(capsys)["made"] == 1
    assert serve(path, out, "--json", "--guidance", "4") == 0
    assert summary(capsys)["made"] == 3


def test_a_picture_of_another_content_is_another_request(tmp_path, capsys):
    line = {"id": "a", "class": 1, "image": "clean.png", "strength": 0.5}
    for color, made in ((10, 1), (10, 0), (200, 1)):
        Image.new("L", (32, 32), color).save(tmp_path / "clean.png")
        # A mark at its beginning and an end of line of Windows are no part of a line.
        path = write(tmp_path, line)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert serve(path, tmp_path / "out", "--json") == 0
        assert summary(capsys)["made"] == made


def test_bad_lines_fail_alone_by_line_and_name(tmp_path, capsys):
    picture = tmp_path / "clean.png"
    Image.new("RGB", (50, 40), (200, 100, 0)).save(picture)
    lines = [
        ({"id": "good", "class": 1}, None),
        ("not json", "a line must be a JSON object: Expecting"),
        ("[1, 2]", "a line must be a JSON object, got [1, 2]"),
        ({"id": "../up", "class": 1}, "id must be letters, digits"),
        ({"id": "", "class": 1}, "id must be letters, digits"),
        ({"id": "good", "class": 1}, "id must be one request's, got 'good' of line 1 again"),
        ({"id": "GOOD", "class": 1}, "id must be one request's, got 'GOOD' of line 1 again"),
        ({"class": 10}, "class must be 0 to 9 or one of T-shirt"),
        ({}, "class must be 0 to 9 or one of T-shirt"),
        ({"class": True}, "class must be 0 to 9"),
        ({"class": 1, "seed": "x"}, "seed must be an int, got 'x'"),
        ({"class": 1, "sede": 1}, "sede is no field of a line; it takes id, seed"),
        ({"class": 1, "threshold": -1}, "threshold must be at least 0, got -1"),
        ({"class": 1, "image": "none.png", "strength": 0.5}, "No such file"),
        ({"class": 1, "image": 3, "strength": 0.5}, "image must be the path of a picture, got 3"),
        ({"class": 1, "image": "clean.png"}, "strength must be given with latents"),
        ({"class": 1, "strength": 0.5}, "latents must be given with a strength"),
        ({"class": 1, "image": "clean.png", "strength": 3}, "strength must be in (0, 1], got 3"),
        ({"id": "i2i", "class": 1, "image": "clean.png", "strength": 0.5}, None),
    ]
    path, out = write(tmp_path, *(line for line, _ in lines)), tmp_path / "out"
    assert serve(path, out, "--json") == 1
    said = capsys.readouterr()
    got = json.loads(said.out)
    expected = [(n, error) for n, (_, error) in enumerate(lines, start=1) if error is not None]
    assert [failure["line"] for failure in got["failed"]] == [n for n, _ in expected]
    for failure, (n, error) in zip(got["failed"], expected, strict=True):
        assert error in failure["error"]
        assert f"line {n} (" in said.err
    assert got["made"] == 2 and {p.name for p in out.iterdir()} == {"good.png", "i2i.png"}


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (None, (), "requests must be a file of JSON lines"),
        ("\n\n", (), "requests must hold a line for each request, got none"),
        ('{"class": 1}', ("--height", "64"), "--height goes with --model"),
        ('{"class": 1}', ("--calls", "3"), "calls must be from"),
        ('{"class": 1}', ("--model", "nowhere"), "model must be a folder of a diffusers pipeline"),
    ],
)
def test_what_cannot_begin_says_so_and_makes_nothing(tmp_path, capsys, content, options, said):
    path = tmp_path / "requests.jsonl"
    if content is not None:
        path.write_text(content)
    assert serve(path, tmp_path / "out", *options) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_run_that_is_interrupted_goes_on_where_it_stood(tmp_path, capsys, monkeypatch):
    path = write(tmp_path, *({"id": f"r{n}", "seed": n, "class": n} for n in range(6)))
    out, calls = tmp_path / "out", []
    forward = FashionUNet.forward

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(FashionUNet, "forward", interrupted)
    assert serve(path, out, "--slots", "2", "--threshold", "0") == 130
    done = {p.name for p in out.iterdir()}
    assert done == {"r0.png", "r1.png"} and "interrupted" in capsys.readouterr().err
    monkeypatch.setattr(FashionUNet, "forward", forward)
    assert serve(path, out, "--json", "--threshold", "0") == 0
    got = summary(capsys)
    assert (got["made"], got["kept"]) == (4, 2)
    assert serve(path, out, "--threshold", "0") == 0
    assert "0 made, 6 kept, 0 failed" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_local_pipeline_serves_prompts(tmp_path, capsys):
    folder = tmp_path / "pipe"
    image.sd(solver=scheduler("DDIMScheduler", clip_sample=False)).save_pretrained(folder)
    lines = [
        {"id": "cat", "seed": 1, "prompt": "a cat"},
        {"id": "dog", "seed": 1, "prompt": "a dog", "negative_prompt": "cat"},
        {"id": "bad", "promt": "a dog"},
        {"id": "none"},
    ]
    path, out = write(tmp_path, *lines), tmp_path / "out"
    side = str(2 * SIZE)
    options = ("--model", str(folder), "--height", side, "--width", side)
    timeline = ("--timeline", str(tmp_path / "t.png"))
    assert serve(path, out, "--json", *options, *timeline) == 1
    got = summary(capsys)
    assert got["made"] == 2 and {p.name for p in out.iterdir()} == {"cat.png", "dog.png"}
    assert "has no argument 'promt'; did you mean prompt?" in got["failed"][0]["error"]
    assert "conditioning must be a dict" in got["failed"][1]["error"]
    with Image.open(out / "cat.png") as picture:
        assert picture.size == (2 * SIZE, 2 * SIZE) and picture.mode == "RGB"
    assert (tmp_path / "t.png").is_file()
    assert serve(path, out, "--json", *options) == 1
    assert summary(capsys)["kept"] == 2
    # Another content of the folder makes other images.
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("leading", "trailing"))
    assert serve(path, out, "--json", *options) == 1
    assert summary(capsys)["made"] == 2
    # A file without requests is told before anything is loaded.
    assert serve(tmp_path / "none.jsonl", out, "--model", "nowhere") == 1
    assert "requests must be a file of JSON lines" in capsys.readouterr().err


def test_a_network_that_fails_ends_the_run_and_all_that_was_done_is_told(
    tmp_path, capsys, monkeypatch
):
    path = write(tmp_path, *({"id": f"r{n}", "seed": n, "class": n} for n in range(5)), "bad")
    forward, calls = FashionUNet.forward, []

    def failing(*args, **kwargs):
        calls.append(None)
        if len(calls) > 12:
            raise torch.OutOfMemoryError("no room")
        return forward(*args, **kwargs)

    monkeypatch.setattr(FashionUNet, "forward", failing)
    assert serve(path, tmp_path / "out", "--json", "--slots", "2", "--threshold", "0") == 1
    said = capsys.readouterr()
    got = json.loads(said.out)
    assert got["made"] == 2 and [failure["line"] for failure in got["failed"]] == [6]
    assert "no room" in got["error"] and "unfinished: 'r2', 'r3'" in got["error"]
    assert "error: OutOfMemoryError: no room" in said.err
