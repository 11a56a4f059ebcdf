"""The command line: `python -m adaptive_kernels demo`, `serve-file` and `info`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from .options import JSON, integer, nonnegative
from .serve import command as serve_file
from .version import __version__

PROGRAM = "python -m adaptive_kernels"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Adaptive diffusion sampling.")
    parser.add_argument("--version", action="version", version=f"adaptive_kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

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
    option("--steps", type=integer(1, 1000), default=50, metavar="N", help="solver steps")
    option("--samples-per-class", type=integer(1), default=4, metavar="N", help="of ten classes")
    option("--seed", type=integer(0), default=0, metavar="N", help="of the noise")
    option("--guidance", type=nonnegative, default=2.0, metavar="G", help="guidance scale")
    option("--threshold", type=nonnegative, metavar="X", help="of the recommended rule; "
           "None: by the solver and the number of steps")  # fmt: skip
    option(
        "--max-skip",
        type=integer(1),
        metavar="K",
        help="most skipped steps in a row, of the adaptive rules; None: 4",
    )
    option(
        "--rounds", type=integer(1), default=2, metavar="N", help="times are the best of so many"
    )
    option("--no-progress", action="store_true", help="draw no progress bar")
    option("--json", action="store_true", help=JSON)
    demo.set_defaults(function=_demo)

    serve_file.add(commands)

    info = commands.add_parser(
        "info",
        help="what was built, what serves each device, and why",
        description="Print the versions of adaptive_kernels and torch; whether each compiled "
        "library (_C for the CPU, _C_cuda for CUDA, _graph for loops inside CUDA graphs) loads; "
        "which implementation of the ops serves each device; and which executors of the sampling "
        "loop work there. Every answer says why. Runs on any machine and needs no GPU.",
    )
    info.add_argument("--json", action="store_true", help=JSON)
    info.set_defaults(function=_info)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from .demo.report import of_times, table, verdict
    from .demo.run import FILES, WAIT_POLICY, run_demo

    if arguments.process and WAIT_POLICY not in os.environ:
        # It is read where torch is loaded, which this process has done.
        os.environ[WAIT_POLICY] = "PASSIVE"
        try:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        except OSError:
            del os.environ[WAIT_POLICY]  # the report says that it is not set

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
    for sentence in of_times(report):
        print(sentence, file=text)
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


def command() -> int:
    """The program: what the console script and `python -m adaptive_kernels` run."""
    return main(process=True)


def main(arguments: list[str] | None = None, process: bool = False) -> int:
    """Run one command and return the exit status: 0, 1 after an error, 2 for bad arguments.

    130 where it was interrupted, 141 where nobody reads its output any more.

    Args:
        arguments: the words of the command line; None takes those of the process.
        process: whether the process is this command's own, which may then start itself again.
    """
    parser = _parser()
    parsed = parser.parse_args(arguments)
    parsed.process = process
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
    sys.exit(command())
