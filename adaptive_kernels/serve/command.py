"""The command `serve-file` of the command line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..options import JSON, integer, nonnegative


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to a program's."""
    serve = commands.add_parser(
        "serve-file",
        help="sample a file of requests through an engine, one image each",
        description="Sample the requests of a file, one JSON object a line, through an engine; "
        "write DIR/<id>.png. Without --model a line is for the shipped model: id, seed (0), class "
        "(0 to 9 or a name), guidance_scale, threshold, image with strength. With --model it is "
        "for a local diffusers pipeline: id, seed (0), prompt, negative_prompt (prompt_2, ...), "
        "guidance_scale, threshold. Images that are there already, of the same request "
        "and settings, stay. A request that fails fails alone, and the exit code is 1 then.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = serve.add_argument
    option("requests", type=Path, metavar="requests.jsonl", help="a JSON object a line")
    option("--out", type=Path, required=True, metavar="DIR", help="folder for the images")
    option("--model", type=Path, metavar="FOLDER", help="a diffusers pipeline; None: the shipped")
    option("--steps", type=integer(1), metavar="N", help="solver steps; None: those of --calls, "
           "50 of the shipped model, or the pipeline's default")  # fmt: skip
    option("--slots", type=integer(1), default=16, metavar="N", help="samples at a time")
    option("--calls", type=integer(1), metavar="N", help="about so many network calls a sample, "
           "as AdaptiveConfig.recommended(calls=) has it")  # fmt: skip
    option("--threshold", type=nonnegative, metavar="X", help="None: by the solver and the steps")
    option("--guidance", type=nonnegative, metavar="G", help="guidance scale of lines without one; "
           "None: 2 of the shipped model, or the pipeline's default")  # fmt: skip
    option("--height", type=integer(1), metavar="N", help="in pixels, with --model")
    option("--width", type=integer(1), metavar="N", help="in pixels, with --model")
    option("--device", default="cpu", help="a torch device")
    option("--dtype", choices=("float32", "float16", "bfloat16"), help="that --model is loaded in; "
           "None: float32")  # fmt: skip
    option("--variant", metavar="NAME", help="of the weights' files of --model, such as fp16")
    option("--timeline", type=Path, metavar="PNG", help="a picture of who stood where when")
    option("--no-progress", action="store_true", help="draw no progress bar")
    option("--json", action="store_true", help=JSON)
    serve.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs it; the exit status."""
    import torch

    from ..rules.config import AdaptiveConfig
    from .lines import read_lines
    from .run import serve_file
    from .sources import pipeline, shipped

    given = arguments
    # A pipeline takes a while to load.
    lines = read_lines(given.requests)
    config = AdaptiveConfig.recommended(
        given.calls, **({} if given.threshold is None else {"threshold": given.threshold})
    )
    usual = given.steps, given.slots, config, given.guidance, given.device
    if given.model is None:
        for name in ("height", "width", "dtype", "variant"):
            if getattr(given, name) is not None:
                raise ValueError(f"--{name} goes with --model")
        source = shipped(given.requests.parent, *usual)
    else:
        dtype = None if given.dtype is None else getattr(torch, given.dtype)
        source = pipeline(given.model, *usual, dtype, given.variant, (given.height, given.width))
    summary = serve_file(lines, given.out, source, config, progress=not given.no_progress)
    if given.timeline is not None and summary["made"]:
        source.engine.timeline_picture(given.timeline)
    text = sys.stderr if given.json else sys.stdout
    for failure in summary["failed"]:
        print(f"line {failure['line']} ({failure['id']}): {failure['error']}", file=text)
    report = summary["report"]
    print(
        f"{summary['made']} made, {summary['kept']} kept, {len(summary['failed'])} failed, in "
        f"{summary['out']}",
        file=text,
    )
    if summary["made"]:
        print(
            f"{report['samples_per_second']:.2f} samples per second, {report['mean_nfe']:.1f} "
            f"network calls each, {report['occupancy']:.0%} of {report['slots']} slots in use",
            file=text,
        )
    if given.json:
        print(json.dumps(summary, indent=2, allow_nan=False))
    if summary["error"] is not None:
        raise RuntimeError(summary["error"])
    return 1 if summary["failed"] else 0
