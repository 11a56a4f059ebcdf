"""The command line: `python -m adaptive_kernels demo`, `serve-file` and `info`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from .version import __version__

PROGRAM = "python -m adaptive_kernels"


def _integer(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            bound = f"from {least} to {most}" if most < 2**62 else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"must be a whole number {bound}, got {text!r}")
        return value

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Adaptive diffusion sampling.")
    parser.add_argument("--version", action="version", version=f"adaptive_kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    json_help = "print JSON on stdout and everything else on stderr"

    demo = commands.add_parser(
        "demo",
        help="sample the shipped model with and without skipping, and compare",
        description="Sample the shipped model with and without skipping; write report.json, "
        "samples.png and decisions.png, and print the table.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = demo.add_argument
    option("--out", type=Path, required=True, metavar="DIR", help="folder for the three files")
    # The training schedule of the model has 1000 timesteps.
    option("--steps", type=_integer(1, 1000), default=50, metavar="N", help="solver steps")
    option("--samples-per-class", type=_integer(1), default=4, metavar="N", help="of ten classes")
    option("--seed", type=_integer(0), default=0, metavar="N", help="of the noise")
    option("--guidance", type=_positive, default=2.0, metavar="G", help="guidance scale")
    option("--threshold", type=_positive, metavar="X", help="of the recommended rule; "
           "None: by the solver and the number of steps")  # fmt: skip
    option(
        "--max-skip",
        type=_integer(1),
        metavar="K",
        help="most skipped steps in a row, of the adaptive rules; None: 4",
    )
    option(
        "--rounds", type=_integer(1), default=2, metavar="N", help="times are the best of so many"
    )
    option("--no-progress", action="store_true", help="draw no progress bar")
    option("--json", action="store_true", help=json_help)
    demo.set_defaults(function=_demo)

    _add_serve_file(commands, json_help)

    info = commands.add_parser(
        "info",
        help="what was built, what serves each device, and why",
        description="Print the versions of adaptive_kernels and torch; whether each compiled "
        "library (_C for the CPU, _C_cuda for CUDA, _graph for loops inside CUDA graphs) loads; "
        "which implementation of the ops serves each device; and which executors of the sampling "
        "loop work there. Every answer says why. Runs on any machine and needs no GPU.",
    )
    info.add_argument("--json", action="store_true", help=json_help)
    info.set_defaults(function=_info)
    return parser


def _add_serve_file(commands: argparse._SubParsersAction, json_help: str) -> None:
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
    option("--steps", type=_integer(1), metavar="N", help="solver steps; None: those of --calls, "
           "50 of the shipped model, or the pipeline's default")  # fmt: skip
    option("--slots", type=_integer(1), default=16, metavar="N", help="samples at a time")
    option("--calls", type=_integer(1), metavar="N", help="about so many network calls a sample, "
           "as AdaptiveConfig.recommended(calls=) has it")  # fmt: skip
    option("--threshold", type=_positive, metavar="X", help="None: by the solver and the steps")
    option("--guidance", type=_positive, metavar="G", help="guidance scale of lines without one; "
           "None: 2 of the shipped model, or the pipeline's default")  # fmt: skip
    option("--height", type=_integer(1), metavar="N", help="in pixels, with --model")
    option("--width", type=_integer(1), metavar="N", help="in pixels, with --model")
    option("--device", default="cpu", help="a torch device")
    option("--dtype", choices=("float32", "float16", "bfloat16"), help="that --model is loaded in; "
           "None: float32")  # fmt: skip
    option("--variant", metavar="NAME", help="of the weights' files of --model, such as fp16")
    option("--timeline", type=Path, metavar="PNG", help="a picture of who stood where when")
    option("--no-progress", action="store_true", help="draw no progress bar")
    option("--json", action="store_true", help=json_help)
    serve.set_defaults(function=_serve_file)


def _serve_file(arguments: argparse.Namespace) -> int:
    import torch

    from .rules.config import AdaptiveConfig
    from .serve.lines import read_lines
    from .serve.run import serve_file
    from .serve.sources import pipeline, shipped

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


def _demo(arguments: argparse.Namespace) -> None:
    from .demo.report import table, verdict
    from .demo.run import FILES, run_demo

    report = run_demo(
        arguments.out,
        samples_per_class=arguments.samples_per_class,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance,
        seed=arguments.seed,
        threshold=arguments.threshold,
        max_skip=arguments.max_skip,
        rounds=arguments.rounds,
        progress=not arguments.no_progress,
    )
    text = sys.stderr if arguments.json else sys.stdout
    print(table(report), file=text)
    print(file=text)
    for name, method in report["methods"].items():
        steps = method["num_inference_steps"]
        same = method["identical"] if name != "full" else 0
        note = f"; {same} samples identical to full, not in its PSNR" if same else ""
        print(f"{name}: {method['what']}, {steps} steps{note}", file=text)
    best = f"the best of {arguments.rounds}" if arguments.rounds > 1 else "once"
    print(f"wall s: one call of the sampler on all samples, {best}", file=text)
    print("PSNR (mean, and mean of the worst tenth) and SSIM: against the full run", file=text)
    print(f"\n{verdict(report)}", file=text)
    print("wrote " + ", ".join(str(arguments.out / name) for name in FILES), file=text)
    if arguments.json:
        print(json.dumps(report, indent=2, allow_nan=False))


def _info(arguments: argparse.Namespace) -> None:
    from . import ops
    from .executors import capability

    info = ops.info()
    info["libraries"]["_graph"] = capability.loop_module()
    info["executors"] = capability.info()
    if arguments.json:
        print(json.dumps(info, indent=2))
        return
    print(f"adaptive_kernels {info['version']}, torch {info['torch']}")
    print("compiled libraries")
    for name, library in info["libraries"].items():
        print(f"  {name:8} {'yes' if library['loaded'] else 'no'}: {library['why']}")
    print("what serves each device")
    for device, serves in info["serves"].items():
        print(f"  {device:8} {serves['implementation']}: {serves['why']}")
    print("how a sampling runs there (executor)")
    for device, executors in info["executors"].items():
        for name, executor in executors.items():
            print(
                f"  {device:8} {name:7} {'yes' if executor['works'] else 'no'}: {executor['why']}"
            )


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 after an error, 2 for bad arguments.

    130 where it was interrupted, 141 where nobody reads its output any more.

    Args:
        arguments: the words of the command line; None takes those of the process.
    """
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        status = parsed.function(parsed) or 0
        print(end="", flush=True)
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has enough of it, as `head` does; Python would flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as of a program that SIGPIPE ended
    except (OSError, TypeError, ValueError, RuntimeError, ImportError) as error:
        print(f"{PROGRAM} {parsed.command}: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
