"""Settings found on a few samples of the user's own model: plans, and thresholds for a target."""

import math
import numbers
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .config import AdaptiveConfig
from .fills import coordinates
from .presets import save_config
from .recording import Samples
from .sampler import AdaptiveSampler
from .store import Store, fingerprint, write_json
from .tradeoff import tradeoff_picture
from .trials import KNOBS, Bench, Plans, Thresholds

__all__ = ["calibrate"]

HELD_OUT = 4  # every fourth sample
EVALUATIONS = 12


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
    dtype: torch.dtype | None = None,
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
        model, scheduler, num_inference_steps, guidance_scale, dtype, **table_arguments: as
            `AdaptiveSampler` takes them; one guidance_scale for all samples.
        noise: [B, ...] floating, standard normal, B >= 8; a few dozen samples like those to come.
        conditioning, unconditional, latents, seed: as a call of `AdaptiveSampler` takes them.
        calls: mean network calls per sample to meet; quality_db: mean PSNR in dB to reach with as
            few calls as possible. One of the two.
        criterion: "plan", "defect", "third_order" or "released".
        config: further settings of an adaptive criterion (max_skip, fill, warmup, ...).
        decode: latents [B, ...] -> what is compared; None compares latents.
        data_range: of the PSNR, in units of what is compared; 2 for images in [-1, 1].
        trials: masks tried on the network, beyond the first few, per number of calls.
        out: folder for config.json, report.json and curve.png (with matplotlib) and for what has
            been done so far: an interrupted calibration goes on there. None keeps nothing.
        progress: whether to show a tqdm bar of network calls.

    Returns:
        The config; `AdaptiveConfig(criterion="plan", plan=...)` for a plan.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; ValueError too
            where no setting of the criterion meets the target.
        OSError: out cannot be written.
    """
    base = _check(calls, quality_db, criterion, config, guidance_scale, trials, noise)
    sampler = AdaptiveSampler(
        scheduler,
        num_inference_steps,
        AdaptiveConfig(criterion="never"),
        guidance_scale,
        dtype,
        **table_arguments,
    )
    coordinates(sampler.table)
    seeds = sampler.begin(model, noise, latents, seed).seed
    everyone = Samples(model, noise, conditioning, unconditional, seeds, latents)
    held = torch.arange(len(noise), device=noise.device) % HELD_OUT == HELD_OUT - 1
    key = fingerprint(
        sampler.table.rows(), noise, conditioning, unconditional, latents, seeds, guidance_scale
    )
    bench = Bench(
        sampler,
        everyone.pick((~held).nonzero()[:, 0]),
        everyone.pick(held.nonzero()[:, 0]),
        lambda x: x if decode is None else decode(x),
        data_range,
        Store(None if out is None else Path(out), key),
        tqdm(unit="call", disable=not progress),
    )
    with bench.bar, torch.no_grad():
        make = Plans(bench, trials) if criterion == "plan" else Thresholds(bench, base)
        chosen = _meet(make, calls, quality_db)
        curve = [make.points[setting] for setting in sorted(make.points)]
        found = make.config(chosen)
        point = {**make.points[chosen], "held_out": bench.measure(found, bench.held)}
        report = {
            "solver": sampler.table.name,
            "num_steps": sampler.table.num_steps,
            "guidance_scale": guidance_scale,
            "samples": {"tuned": int((~held).sum()), "held_out": int(held.sum())},
            "target": {"calls": calls, "quality_db": quality_db},
            "criterion": criterion,
            "chosen": point,
            "curve": curve,
        }
        bench.bar.set_description(
            "held out: {nfe:.1f} calls, {psnr_db:.1f} dB".format(**point["held_out"])
        )
    if out is not None:
        save_config(found, Path(out) / "config.json")
        write_json(Path(out) / "report.json", report)
        tradeoff_picture(Path(out) / "curve.png", report)
    return found


def _meet(make, calls: float | None, quality_db: float | None):
    """The setting that meets the target, bisected: more calls and more quality to the right."""
    low, high = make.range()
    if make.whole and calls is not None:
        setting = round(calls / make.bench.table.stages)
        # Neighbours for the curve.
        for other in sorted({max(low, round(setting * 0.75)), round(setting * 1.3)} - {setting}):
            if low <= other <= high:
                make.point(other)
        make.point(setting)
        return setting
    name, target = ("nfe", calls) if calls is not None else ("psnr_db", quality_db)
    ends = {end: make.point(end)[name] for end in ((high,) if make.whole else (low, high))}
    if max(ends.values()) < target - (0.5 if calls is not None else 0.0):
        raise ValueError(
            f"{'calls' if calls is not None else 'quality_db'} must be within reach of the "
            f"criterion, at most {max(ends.values()):.1f} here, got {target}"
        )
    if calls is not None and min(ends.values()) > target + 0.5:
        raise ValueError(
            f"calls must be within reach of the criterion, at least {min(ends.values()):.1f} with "
            f"this max_skip and warmup, got {target}"
        )
    for _ in range(EVALUATIONS):
        middle = (low + high) // 2 if make.whole else (low + high) / 2
        if make.whole and middle in (low, high) and middle in make.points:
            break
        value = make.point(middle)[name]
        if calls is not None and abs(value - target) <= 0.05:
            break
        low, high = (middle, high) if value < target else (low, middle)
    if calls is not None:
        return min(make.points, key=lambda s: abs(make.points[s][name] - target))
    enough = [s for s in make.points if make.points[s][name] >= target]
    return min(enough, key=lambda s: make.points[s]["nfe"])


def _check(calls, quality_db, criterion, config, guidance_scale, trials, noise) -> AdaptiveConfig:
    if (calls is None) == (quality_db is None):
        raise ValueError(
            f"one of calls and quality_db must be given, got calls={calls}, quality_db={quality_db}"
        )
    name, target = ("calls", calls) if calls is not None else ("quality_db", quality_db)
    if isinstance(target, bool) or not isinstance(target, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(target).__name__}")
    if not (math.isfinite(target) and target >= 1):
        raise ValueError(f"{name} must be at least 1 and finite, got {target}")
    if criterion not in ("plan", *KNOBS):
        raise ValueError(f"criterion must be 'plan' or one of {[*KNOBS]}, got {criterion!r}")
    if config is not None and criterion == "plan":
        raise ValueError("config goes with an adaptive criterion, got one with criterion 'plan'")
    if config is not None and config.criterion != criterion:
        raise ValueError(f"config must be one of {criterion!r}, got {config.criterion!r}")
    if isinstance(guidance_scale, Tensor) and guidance_scale.dim() > 0:
        raise ValueError("guidance_scale must be one number for all samples, got a tensor")
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 0:
        raise ValueError(f"trials must be an int of at least 0, got {trials!r}")
    if not isinstance(noise, Tensor) or noise.dim() < 2 or len(noise) < 2 * HELD_OUT:
        got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must be [B, ...] with B >= {2 * HELD_OUT}, got {got}")
    return AdaptiveConfig(criterion=criterion) if config is None and criterion != "plan" else config
