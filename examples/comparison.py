"""What the examples share: a pipeline run plain and adaptive, in turns, and what came of it."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import adaptive_kernels as ak
from adaptive_kernels.metrics import psnr, ssim

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# A difference is drawn so much larger than it is, around grey.
AMPLIFICATION = 5


def parser(description: str, model: str, guidance: float) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--model", default=model, help="name on the hub or folder (default: %(default)s)")
    add("--prompt", action="append", help="may be given several times: one image each")
    add("--negative-prompt", default=None)
    add(
        "--rule",
        default="recommended",
        help="recommended, third_order, released, every(k), or a config saved by calibrate",
    )
    add("--threshold", type=float, default=None, help="of the rule; default: the rule's own")
    add("--max-skip", type=int, default=None, help="largest number of skipped steps in a row")
    add("--scheduler", default=None, help="class of diffusers, such as DDIMScheduler")
    add("--steps", type=int, default=50, help="solver steps (default: %(default)s)")
    add("--guidance", type=float, default=guidance, help="guidance scale (default: %(default)s)")
    add("--size", type=int, default=None, help="height and width in pixels; default: the model's")
    add("--seed", type=int, default=0)
    add("--rounds", type=int, default=3, help="timed runs of each, in turns (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=DTYPES, default=None, help="default: float16 on a GPU, else float32")
    add("--offload", action="store_true", help="keep on the GPU only what is being run")
    add("--out", type=Path, default=Path("comparison"), help="folder (default: %(default)s)")
    add("--json", action="store_true", help="print the report for a program")
    return found


def config_of(rule: str, threshold: float | None, max_skip: int | None) -> ak.AdaptiveConfig:
    """The config that --rule names."""
    limits = {"threshold": threshold, "max_skip": max_skip}
    limits = {name: value for name, value in limits.items() if value is not None}
    if Path(rule).suffix == ".json" or rule in ak.presets():
        return ak.load_config(rule)
    criterion = "defect" if rule == "recommended" else rule
    return ak.AdaptiveConfig(criterion=criterion, **limits)


def load(args: argparse.Namespace) -> Any:
    dtype = args.dtype or ("float32" if args.device == "cpu" else "float16")
    pipe = DiffusionPipeline.from_pretrained(args.model, torch_dtype=DTYPES[dtype])
    if args.scheduler is not None:
        import diffusers

        kind = getattr(diffusers, args.scheduler, None)
        if kind is None or not hasattr(kind, "from_config"):
            raise SystemExit(f"--scheduler must be a scheduler of diffusers, got {args.scheduler}")
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    if args.offload:
        pipe.enable_model_cpu_offload(device=args.device)
        return pipe
    return pipe.to(args.device)


def generate(pipe: Any, args: argparse.Namespace, steps: int) -> tuple[np.ndarray, float]:
    """Images [B, H, W, 3] in [0, 1], always from the same noise, and the seconds they took."""
    prompts = args.prompt or ["a red ball on a white background"]
    generators = [torch.Generator().manual_seed(args.seed + k) for k in range(len(prompts))]
    began = time.perf_counter()
    images = pipe(
        prompt=prompts,
        negative_prompt=args.negative_prompt and [args.negative_prompt] * len(prompts),
        num_inference_steps=steps,
        guidance_scale=args.guidance,
        height=args.size,
        width=args.size,
        generator=generators,
        output_type="np",
    ).images
    return images, time.perf_counter() - began


def save(folder: Path, plain: np.ndarray, adaptive: np.ndarray) -> None:
    difference = 0.5 + AMPLIFICATION * (adaptive - plain) / 2
    for name, images in (("plain", plain), ("adaptive", adaptive), ("difference", difference)):
        for k, image in enumerate(images):
            pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}-{k}.png")


def main(description: str, model: str, guidance: float) -> None:
    args = parser(description, model, guidance).parse_args()
    try:
        config = config_of(args.rule, args.threshold, args.max_skip)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"--rule, --threshold, --max-skip: {error}") from None
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = load(args)
    # What a first call does but once (kernels, buffers) belongs to neither.
    generate(pipe, args, steps=min(args.steps, 2))
    with ak.adaptive(pipe, ak.AdaptiveConfig(criterion="never")):
        generate(pipe, args, args.steps)
    seconds: dict[str, list[float]] = {"plain": [], "adaptive": []}
    for _ in range(args.rounds):
        plain, took = generate(pipe, args, args.steps)
        seconds["plain"].append(took)
        with ak.adaptive(pipe, config):
            adaptive, took = generate(pipe, args, args.steps)
            seconds["adaptive"].append(took)
            text, report = ak.summary(pipe), ak.summary(pipe, as_dict=True)
            ak.decisions_picture(pipe, args.out / "decisions.png")
    save(args.out, plain, adaptive)
    ours, theirs = (torch.from_numpy(v).movedim(-1, 1) for v in (adaptive, plain))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    report["comparison"] = {
        "model": args.model,
        "seconds": seconds,
        "speed_up": median["plain"] / median["adaptive"],
        "psnr_db": [min(v, 999.0) for v in psnr(ours, theirs, 1.0).tolist()],
        "ssim": ssim(ours, theirs, 1.0).tolist(),
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    if args.json:
        print(json.dumps(report))
        return
    print(text)
    print(
        f"plain {median['plain']:.2f} s, adaptive {median['adaptive']:.2f} s: "
        f"{report['comparison']['speed_up']:.2f}x (medians of {args.rounds}, VAE and text included)"
    )
    for k, (decibel, similarity) in enumerate(
        zip(report["comparison"]["psnr_db"], report["comparison"]["ssim"], strict=True)
    ):
        print(f"image {k}: {decibel:.1f} dB and SSIM {similarity:.4f} to the plain one")
    print(f"images, difference (x {AMPLIFICATION}), decisions and report.json in {args.out}")
