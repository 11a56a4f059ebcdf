"""The calls by scheduler are measured again as they were."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import schedulers

STORED = Path(__file__).parents[2] / "benchmarks" / "results" / "schedulers-cpu.json"


def test_a_part_of_the_stored_run_comes_out_again(tmp_path, monkeypatch):
    names = ("DDIM", "Euler ancestral", "FlowMatch Heun")
    words = [word for name in names for word in ("--only", name)]
    out = tmp_path / "schedulers.json"
    monkeypatch.setattr(sys, "argv", ["schedulers", "--out", str(out), "--steps", "6", *words])
    schedulers.main()
    stored = {(r["scheduler"], r["steps"]): r for r in json.loads(STORED.read_text())["rows"]}
    found = json.loads(out.read_text())["rows"]
    assert [row["scheduler"] for row in found] == [*names]
    for row in found:
        before = stored[row["scheduler"], 6]
        # Another CPU's convolutions may tip a decision or two of 20 samples.
        assert row["calls"] == pytest.approx(before["calls"], abs=0.15)
        assert row["rows"] == before["rows"] and row["adds_noise"] == before["adds_noise"]
        if before["psnr_db"] is not None:
            assert row["psnr_db"] == pytest.approx(before["psnr_db"], abs=0.5)


def test_every_scheduler_is_made():
    """And keeps to the noise schedule of the shipped model, but for the flows."""
    for name in schedulers.SCHEDULERS:
        config = schedulers.scheduler(name).config
        assert name.startswith("FlowMatch") or config["beta_end"] == 0.02, name
