"""Plans in the laboratory: fitted once per cell and number of calls, on samples of their own."""

from __future__ import annotations

from pathlib import Path

import torch

from adaptive_kernels import AdaptiveConfig, calibrate, load_config, save_config
from adaptive_kernels.calibration.store import fingerprint

from ..method import Method, Run
from ..problem import Batch, Problem
from .ours import STREAMS, sampled

# The noise the plans are fitted to; no run that is reported may start from it.
SEED = 1_000_003
TRIALS = 12
FOLDER = Path(__file__).resolve().parents[3] / "bench" / "fidelity" / "plans"


def plan(problem: Problem, calls: int, folder: Path = FOLDER) -> AdaptiveConfig:
    """The plan of `calls` network calls for a problem, from the folder or found now."""
    batch = problem.batch(SEED)
    # Another model, other samples or guidance must not meet these plans.
    parameters = getattr(problem.model, "parameters", list)()
    weights = [p.detach().flatten()[:16].cpu() for p in parameters]
    key = fingerprint(weights, batch.noise, batch.conditioning, batch.unconditional, TRIALS)
    name = f"{problem.name}-{problem.guidance_scale}-{key}"
    stored = folder / name / f"{calls}.json"
    if not stored.is_file():
        found = calibrate(
            problem.model,
            problem.table(),
            noise=batch.noise,
            conditioning=batch.conditioning,
            unconditional=batch.unconditional,
            guidance_scale=problem.guidance_scale,
            calls=calls,
            seed=SEED * STREAMS,
            decode=problem.decode,
            trials=TRIALS,
            curve=(),
            out=folder / name,
            progress=False,
        )
        save_config(found, stored)
    return load_config(stored)


def _settings(problem: Problem, budget: float) -> list[int]:
    calls = round(budget)
    if not 2 <= calls < problem.steps or problem.table().levels is None:
        return []
    with torch.no_grad():
        plan(problem, calls)
    return [calls]


def _make(calls: float) -> Run:
    def run(problem: Problem, batch: Batch):
        if batch.seed == SEED:
            raise ValueError(f"seeds must not hold {SEED}, which plans are fitted to")
        return sampled(plan(problem, int(calls)))(problem, batch)

    return run


METHODS = [Method("plan", _make, settings=_settings)]
