"""The engine's benchmarks, as far as they run at the size of a test."""

import json

import pytest
import torch

from benchmarks.engine import __main__ as cpu
from benchmarks.engine import gpu


@pytest.fixture(autouse=True)
def alone():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_ways_sample_the_same_requests_and_say_what_each_costs(tmp_path, capsys):
    options = ["--requests", "12", "--slots", "4", "--steps", "12", "--rounds", "1"]
    assert cpu.main(["--out", str(tmp_path), "--no-progress", *options]) == 0
    report = json.loads((tmp_path / "engine.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [
        *("batches", "batch-wide", "per sample", "refill", "engine", "fewer steps"),
    ]
    assert rows["batches"]["mean_nfe"] == rows["refill"]["mean_nfe"] == 12
    assert rows["batches"]["speed_up"] == 1 and rows["batches"]["network_calls"] == 36
    # The same requests under the same rule, whoever stands beside them.
    assert rows["engine"]["mean_nfe"] == rows["per sample"]["mean_nfe"] < 12
    assert rows["batch-wide"]["mean_nfe"] >= rows["engine"]["mean_nfe"]
    assert rows["fewer steps"]["mean_nfe"] == round(rows["engine"]["mean_nfe"])
    assert rows["engine"]["network_calls"] < rows["per sample"]["network_calls"]
    assert all(0 < row["overhead"] < 1 for row in rows.values())
    assert list(report["scaling"]) == ["1", "4", "16", "64"] and 0.5 < report["occupancy"] <= 1
    for name in ("engine.png", "timeline.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert "| engine: refilled slots" in capsys.readouterr().out


def test_the_gpus_benchmark_runs_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "REQUESTS", 20)
    path = tmp_path / "engine.json"
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["failed"] == report["not_begun"] == []
    rows = {row["way"]: row for row in report["rows"]}
    assert list(rows) == ["batches", "refill", "engine"]
    assert rows["engine"]["mean_nfe"] == 31 and rows["engine"]["bound"] == pytest.approx(50 / 31)
    assert 0 < rows["engine"]["occupancy"] < 1 and rows["engine"]["host_us_per_tick"] > 0
    # A network whose forced calls are not made is not timed.
    monkeypatch.setattr(gpu, "MAX_SKIP", 3)
    monkeypatch.setattr(gpu, "STEPS", 13)
    monkeypatch.setattr(gpu.ak.AdaptiveConfig, "paper", lambda **_: gpu.FULL)
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(path)]) == 1
    assert "calls must be" in json.loads(path.read_text())["failed"][0]
