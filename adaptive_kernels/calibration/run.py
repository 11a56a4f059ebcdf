"""Settings found on a few samples of the user's own model: plans, and thresholds for a target."""

import math
import numbers
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..files import replacing, write_json
from ..rules.config import AdaptiveConfig
from ..rules.origin import Origin
from ..rules.presets import save_config
from ..sampler import AdaptiveSampler
from ..solvers.keywords import known_keywords
from ..solvers.table import SolverTable
from .noise import MOST, output_noise
from .noise import calls as noise_calls
from .picture import tradeoff_picture
from .progress import CallBar
from .record import Recording, Samples, begin
from .store import Store, fingerprint
from .target import plan_setting, search_calls, threshold_setting
from .trials import KNOBS, MOST_DB, Bench, Plans, Thresholds

__all__ = ["calibrate"]

HELD_OUT = 4  # every fourth sample


def calibrate(
    model: Callable,
    scheduler: Any,
    num_inference_steps: int | None = None,
    *,
    noise: Tensor,
    conditioning: dict | None = None,
    unconditional: dict | None = None,
    guidance_scale: float | None = None,
    calls: float | None = None,
    quality_db: float | None = None,
    criterion: str = "plan",
    config: AdaptiveConfig | None = None,
    latents: Tensor | None = None,
    seed: int | Sequence[int] | Tensor = 0,
    decode: Callable[[Tensor], Tensor] | None = None,
    data_range: float = 2.0,
    trials: int = 24,
    curve: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    guidance_calls: str = "batched",
    out: str | os.PathLike | None = None,
    progress: bool = True,
    **table_arguments,
) -> AdaptiveConfig:
    """Find the config that meets a number of network calls or a quality on some samples of a model.

    Samples the model in full and writes every step down. For criterion "plan" a mask is searched on
    these recordings, tried on the network, and each step's weights are fitted by least squares; for
    the other criteria the threshold is bisected. Every fourth sample is left out of both and
    measured at the end.

        quality = mean over samples of PSNR(decode(latents), decode(latents of the full run))

    Args:
        model, scheduler, num_inference_steps, guidance_scale, dtype, guidance_calls,
            **table_arguments: as `AdaptiveSampler` takes them; one guidance_scale for all samples.
        noise: [B, ...] floating, standard normal, B >= 8; a few dozen samples like those to come.
        conditioning, unconditional, latents, seed: as a call of `AdaptiveSampler` takes them.
        calls: mean network calls per sample to meet; quality_db: mean PSNR in dB to reach with as
            few calls as possible. One of the two.
        criterion: "plan", "defect", "third_order" or "released". For "defect" the noise of the
            network is measured too (`measure_output_noise`), unless config.output_noise says it.
        config: further settings of an adaptive criterion (max_skip, fill, warmup, ...).
        decode: latents [B, ...] -> what is compared; None compares latents.
        data_range: of the PSNR, in units of what is compared; 2 for images in [-1, 1].
        trials: masks tried on the network, beyond the first few, for each number of calls; a plan
            thus costs about `trials` + 8 samplings of so many calls on the tuned samples.
        curve: further calls to find plans for, at the same cost; None: one on either side.
        out: folder for config.json, report.json and curve.png (with matplotlib) and for what has
            been done so far (8 bytes an element, step and sample): an interrupted calibration goes
            on there, another target replaces the results. None keeps nothing.
        progress: whether to show a tqdm bar of network calls; its total is an estimate that gets
            better.

    Returns:
        The config; `AdaptiveConfig(criterion="plan", plan=...)` for a plan. Its `origin` is this
        solver and this network: used with others it warns.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; ValueError too
            where no setting meets the target, or out holds another calibration, which stays.
        OSError: out cannot be written.
    """
    known_keywords(calibrate, scheduler, table_arguments)
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be a bool, got {progress!r}")
    base = _check(calls, quality_db, criterion, config, trials, curve, noise)
    _check_call(guidance_scale, unconditional, decode, data_range)
    calls, quality_db = (None if v is None else float(v) for v in (calls, quality_db))
    sampler = AdaptiveSampler(
        scheduler,
        num_inference_steps,
        AdaptiveConfig(criterion="never"),
        guidance_scale,
        dtype,
        guidance_calls=guidance_calls,
        **table_arguments,
    )
    table, guidance = sampler.table, sampler.guidance_scale
    _check_table(table, calls, curve)
    samples = Samples(model, noise, conditioning, unconditional, seed, latents)
    # Every argument is checked here, before anything is sampled or written.
    state, _ = begin(sampler, sampler.config, samples)
    samples = replace(samples, seed=state.seed)
    halves = [None if tree is None else tree.leaves for tree in samples.trees()]
    arrays = (noise, *halves, latents, state.seed, guidance)
    key = fingerprint(asdict(table), *arrays, state.model_input.dtype)
    store = Store(None if out is None else Path(out), key)
    held = torch.arange(len(noise), device=noise.device) % HELD_OUT == HELD_OUT - 1
    parts = {
        "full": 2 * table.num_steps,
        "noise": noise_calls(table) if criterion == "defect" else 0,
        "search": search_calls(table, criterion, calls, curve, int(trials)),
        "held": calls or table.num_steps / 2,
    }
    total = round(sum(parts.values()))
    with tqdm(total=total, unit="call", disable=not progress) as shown, torch.no_grad():
        bar = CallBar(shown, parts)
        tuned, held_out = (samples.pick(mask.nonzero()[:, 0]) for mask in (~held, held))
        bench = Bench(sampler, tuned, held_out, decode or (lambda x: x), data_range, store, bar)
        if criterion == "plan":
            make = Plans(bench, int(trials))
            chosen = plan_setting(make, calls, quality_db, curve)
        else:
            make = Thresholds(bench, _noisy(bench, base))
            chosen = threshold_setting(make, calls, quality_db)
        best = make.config(chosen)
        point = {**make.points[chosen], "held_out": bench.measure(best, bench.held)}
        bar.expect(search=0, held=0)
        bar.say("held out: {nfe:.1f} calls, {psnr_db:.1f} dB".format(**point["held_out"]))
    best = replace(best, origin=Origin.of(table, model))
    if out is not None:
        report = {
            "solver": table.name,
            "num_steps": table.num_steps,
            "guidance_scale": None if guidance_scale is None else float(guidance_scale),
            "samples": {"tuned": int((~held).sum()), "held_out": int(held.sum())},
            "target": {"calls": calls, "quality_db": quality_db},
            "criterion": criterion,
            "chosen": point,
            "curve": [make.points[setting] for setting in sorted(make.points)],
        }
        save_config(best, store.folder / "config.json")
        write_json(store.folder / "report.json", report)
        with replacing(store.folder / "curve.png") as hidden:
            tradeoff_picture(hidden, report)
    return best


def _noisy(bench: Bench, config: AdaptiveConfig) -> AdaptiveConfig:
    """The config, told how noisy the network is where the rule asks and nobody said."""
    if "defect" not in config.kind.sums or config.output_noise is not None:
        return config
    sizes = bench.store.get("output_noise")
    if sizes is None:
        bench.bar.say("noise of the network")
        few = torch.arange(min(len(bench.tuned.noise), MOST), device=bench.tuned.noise.device)
        full = bench.full[id(bench.tuned)]
        some = Recording(full.latents[:, few], full.outputs[:, few])
        sizes = output_noise(bench.sampler, bench.tuned.pick(few), some, bench.bar.tick)
        bench.store.put("output_noise", list(sizes))
    bench.bar.expect(noise=0)
    # Where there is none the dtype says as much.
    return replace(config, output_noise=sizes) if any(sizes) else config


def _check(calls, quality_db, criterion, config, trials, curve, noise) -> AdaptiveConfig | None:
    if (calls is None) == (quality_db is None):
        raise ValueError(
            f"one of calls and quality_db must be given, got calls={calls}, quality_db={quality_db}"
        )
    name, target = ("calls", calls) if calls is not None else ("quality_db", quality_db)
    if isinstance(target, bool) or not isinstance(target, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(target).__name__}")
    if not (math.isfinite(target) and target >= 1):
        raise ValueError(f"{name} must be at least 1 and finite, got {target}")
    if quality_db is not None and quality_db > MOST_DB:
        raise ValueError(f"quality_db must be at most {MOST_DB:g}, got {quality_db}")
    if not isinstance(criterion, str) or criterion not in ("plan", *KNOBS):
        raise ValueError(f"criterion must be 'plan' or one of {[*KNOBS]}, got {criterion!r}")
    if config is not None and not isinstance(config, AdaptiveConfig):
        raise TypeError(f"config must be an AdaptiveConfig, got {type(config).__name__}")
    if config is not None and criterion == "plan":
        raise ValueError("config goes with an adaptive criterion, got one with criterion 'plan'")
    if curve is not None and criterion != "plan":
        raise ValueError(f"curve goes with criterion 'plan', got one with {criterion!r}")
    if config is not None and config.criterion != criterion:
        raise ValueError(f"config must be one of {criterion!r}, got {config.criterion!r}")
    if isinstance(trials, bool) or not isinstance(trials, numbers.Integral) or trials < 0:
        raise ValueError(f"trials must be an int of at least 0, got {trials!r}")
    ok = isinstance(noise, Tensor) and noise.dim() >= 2 and noise.numel() > 0
    if not ok or len(noise) < 2 * HELD_OUT:
        got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must be [B, ...] with B >= {2 * HELD_OUT}, got {got}")
    return AdaptiveConfig(criterion=criterion) if config is None and criterion != "plan" else config


def _check_call(guidance_scale, unconditional, decode, data_range) -> None:
    if isinstance(guidance_scale, Tensor) and guidance_scale.dim() > 0:
        raise ValueError("guidance_scale must be one number for all samples, got a tensor")
    if guidance_scale is None and unconditional is not None:
        raise ValueError("unconditional needs a guidance_scale, got guidance_scale=None")
    if decode is not None and not callable(decode):
        raise TypeError(f"decode must be callable or None, got {type(decode).__name__}")
    if isinstance(data_range, bool) or not isinstance(data_range, numbers.Real):
        raise TypeError(f"data_range must be a number, got {type(data_range).__name__}")
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range must be positive and finite, got {data_range}")


def _check_table(table: SolverTable, calls: float | None, curve: Sequence[int] | None) -> None:
    most = table.num_steps
    if most <= 2 * table.stages:
        raise ValueError(f"num_inference_steps must be at least 3, got {table}")
    if table.levels is None:
        raise ValueError(
            f"scheduler must have an add_noise() whose levels fit its own steps, got {table}"
        )
    if calls is not None and calls > most:
        raise ValueError(f"calls must be at most the {most} of {table}, got {calls:g}")
    integral = isinstance(curve, Sequence) and all(isinstance(v, numbers.Integral) for v in curve)
    if curve is not None and not (integral and all(1 <= v <= most for v in curve)):
        raise ValueError(f"curve must be numbers of calls from 1 to {most}, got {curve!r}")
