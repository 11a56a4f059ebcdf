"""The demo: a real model sampled with and without skipping, from the same noise, and compared."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import ops
from ..pictures import decisions_picture
from ..rules.config import AdaptiveConfig
from ..rules.presets import load_config
from . import model as demo_model
from .method import Method, scatter
from .pictures import samples_picture

__all__ = ["run_demo"]

FILES = ("report.json", "samples.png", "decisions.png")
# At 50 steps these give about as many calls as defect's default (17.9, 17.9 and 17.8).
THIRD_ORDER_THRESHOLD = 0.2
RELEASED_THRESHOLD = 0.04
# OpenMP's threads spin while they wait, which makes a busy machine up to eight times slower
# (measured here); read when torch is loaded.
WAIT_POLICY = "OMP_WAIT_POLICY"
PLAN, PLAN_STEPS = "fashion-ddim-50-calls-10", 50
ORIGINS = {
    "defect": "the recommended rule",
    "third_order": "the paper's rule",
    "released": "its authors' code",
}
ROUNDS = 2


def run_demo(
    out: str | os.PathLike,
    *,
    samples_per_class: int = 4,
    num_inference_steps: int = 50,
    guidance_scale: float = 2.0,
    seed: int = 0,
    threshold: float | None = None,
    max_skip: int | None = None,
    rounds: int = ROUNDS,
    progress: bool = True,
    threads: int | None = None,
) -> dict:
    """Sample the shipped model by several methods from one noise; write a report and two pictures.

    The methods: the plain sampler; the recommended rule; the paper's rule and its authors' code at
    about as many network calls; the fixed patterns with the next more and the next fewer, their
    gaps filled like the recommended rule's; the plain sampler with as many steps as the recommended
    rule makes calls; at 50 steps also a shipped plan. PSNR and SSIM compare the images, cut off to
    [-1, 1], with the plain sampler's. Wall time is one call of the sampler, the best of `rounds`
    after a warm-up.

    Args:
        out: folder for report.json, samples.png and decisions.png, made if missing. The files
            appear when all are done; if anything fails, none does.
        samples_per_class: samples of each of the ten classes.
        num_inference_steps: solver steps.
        guidance_scale: classifier-free guidance, dimensionless.
        seed: of the noise.
        threshold: of the recommended rule; None takes the default of AdaptiveConfig.
        max_skip: of the adaptive rules; None takes the default of AdaptiveConfig.
        rounds: how often every method samples, at least once; for times worth keeping, several.
        progress: whether a bar is drawn on stderr.
        threads: threads of torch while this runs; None leaves them.

    Returns:
        `{"methods": {name: {...}}, "settings": {...}}`, what report.json holds. A PSNR is the mean
        over the samples that are not identical to the plain sampler's, None if all are.

    Raises:
        OSError: out cannot be written; nothing has been sampled then.
        ValueError, TypeError: an argument, by its name.
        RuntimeError: a method gave NaN or Inf.
        ImportError: matplotlib is not installed.
    """
    if samples_per_class < 1:
        raise ValueError(f"samples_per_class must be at least 1, got {samples_per_class}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    labels = torch.arange(demo_model.NUM_CLASSES).repeat_interleave(samples_per_class)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), *demo_model.SAMPLE_SHAPE, generator=generator)
    if find_spec("matplotlib") is None:
        raise ImportError("the demo needs matplotlib: pip install 'adaptive_kernels[demo]'")
    limits = {} if max_skip is None else {"max_skip": max_skip}
    rules = {
        "defect": AdaptiveConfig(threshold, criterion="defect", **limits),
        "third_order": AdaptiveConfig.paper(threshold=THIRD_ORDER_THRESHOLD, **limits),
        "released": AdaptiveConfig(RELEASED_THRESHOLD, criterion="released", **limits),
    }
    with _appearing(Path(out)) as folder, _threads(threads) as threads:
        methods = _sample(
            *(noise, labels, rules, num_inference_steps, guidance_scale, rounds, progress)
        )
        spread, slowest = scatter(methods)
        report = {
            "methods": {name: method.figures(methods["full"]) for name, method in methods.items()},
            "settings": {
                "num_inference_steps": num_inference_steps,
                "samples_per_class": samples_per_class,
                "guidance_scale": guidance_scale,
                "seed": seed,
                "scheduler": type(demo_model.demo_scheduler()).__name__,
                "rounds": rounds,
                "scatter": spread,
                "scatter_of": slowest,
                "omp_wait_policy": os.environ.get(WAIT_POLICY),
                "threads": threads,
                "cpu_count": os.cpu_count(),
                "implementation": ops.info()["serves"]["cpu"]["implementation"],
                "adaptive_kernels": ops.info()["version"],
                "torch": torch.__version__,
                "diffusers": version("diffusers"),
                "python": platform.python_version(),
            },
        }
        (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        _draw(folder, methods["full"], methods["defect"], labels)
    return report


def _sample(
    noise: Tensor,  # [B, C, H, W]
    labels: Tensor,  # [B] int64
    rules: dict[str, AdaptiveConfig],
    steps: int,
    guidance: float,
    rounds: int,
    progress: bool,
) -> dict[str, Method]:
    model = demo_model.load_demo_model()
    plain = AdaptiveConfig(criterion="never")
    # The first calls prepare the network's kernels; that is no method's time.
    Method("warm-up", 2, plain, guidance).run(model, noise, labels, tqdm(disable=True))
    methods: dict[str, Method] = {}
    with tqdm(total=8 * rounds, disable=not progress, bar_format="{l_bar}{bar}| {elapsed}") as bar:

        def run(name: str) -> None:
            bar.set_description(name)
            methods[name].run(model, noise, labels, bar)
            if bad := int(methods[name].result.nonfinite.sum()):
                raise RuntimeError(f"{name} gave NaN or Inf in {bad} of {len(noise)} samples")

        def add(name: str, what: str, config: AdaptiveConfig, steps: int = steps) -> None:
            methods[name] = Method(what, steps, config, guidance)
            run(name)

        add("full", "the plain sampler", plain)
        table = methods["full"].sampler.table
        for name, config in rules.items():
            limits = f"threshold {config.resolved(table).threshold:.3g}"
            what = f"{ORIGINS[name]}, {limits}, max_skip {config.max_skip}"
            add(name, what, config)
        if steps == PLAN_STEPS:
            add("plan", f"the preset {PLAN}", load_config(PLAN))
        nfe = methods["defect"].result.nfe.double().mean().item()
        for k in _periods(steps, nfe):
            pattern = AdaptiveConfig(criterion=f"every({k})", fill="linear")
            add(f"every({k})", "a fixed pattern, linear fill", pattern)
        add("fewer_steps", "the plain sampler", plain, max(1, round(nfe)))
        bar.total = len(methods) * rounds
        # In turns, every other round backwards: what slows the machine meets all alike.
        for number in range(1, rounds):
            for name in reversed(methods) if number % 2 else methods:
                run(name)
    return methods


def _draw(folder: Path, full: Method, adaptive: Method, labels: Tensor) -> None:
    record, names = adaptive.result, demo_model.CLASS_NAMES
    numbers = zip(record.nfe.tolist(), adaptive.quality(full)[0].tolist(), strict=True)
    rows = {"full": full.result.latents, "defect": record.latents}
    captions = [f"{calls} NFE\n{db:.1f} dB" for calls, db in numbers]
    samples_picture(folder / "samples.png", rows, labels, names, captions)
    nfe = f"mean NFE {record.nfe.double().mean():.1f} of {adaptive.steps}"
    path, title = folder / "decisions.png", f"defect ({adaptive.what}): {nfe}"
    decisions_picture(path, record.refreshed, record.score, labels, names, title)


def _periods(steps: int, nfe: float) -> list[int]:
    """The k whose every(k) makes at most `nfe` calls, and the one before it; 2 to 16."""
    # Two calls come first: the line needs two outputs.
    k = next((k for k in range(2, 16) if 1 + math.ceil((steps - 1) / k) <= nfe), 16)
    return [k] if k == 2 or 1 + math.ceil((steps - 1) / k) == nfe else [k - 1, k]


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A hidden folder in `out`, made if missing; its files move up when the block succeeds."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        hidden = tempfile.TemporaryDirectory(prefix=".unfinished-", dir=out)
        folders = [name for name in FILES if (out / name).is_dir()]
    except OSError as error:
        raise OSError(f"out must be a folder that can be written, got {out}: {error}") from error
    with hidden as folder:
        if folders:
            raise IsADirectoryError(f"out must not hold a folder named {folders[0]}, got {out}")
        yield Path(folder)
        for name in FILES:
            os.replace(Path(folder, name), out / name)
