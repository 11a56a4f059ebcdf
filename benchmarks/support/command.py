"""The command line of a benchmark that runs on a GPU, and how it ends."""

import argparse
import sys
from pathlib import Path

import torch


def parser(doc: str, seconds: float) -> argparse.ArgumentParser:
    """The options that these benchmarks share.

    Args:
        doc: of the module; its first line is the description.
        seconds: for all cases, where nobody says.
    """
    command = argparse.ArgumentParser(description=doc.split("\n", 1)[0])
    command.add_argument("--out", type=Path, required=True, metavar="JSON")
    command.add_argument("--seconds", type=float, default=seconds, help="for all cases")
    command.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    command.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    return command


def has_device(options: argparse.Namespace) -> bool:
    """Whether the device asked for is here; says so where it is not."""
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"{Path(sys.argv[0]).name}: no CUDA GPU is here", file=sys.stderr)
        return False
    return True


def exit_code(report: dict) -> int:
    """1 after a failure or where nothing was timed, else 0; prints what failed or was left out."""
    for name in report["not_begun"]:
        print(f"left out: {name}: no time was left")
    failed = report["failed"]
    if not report["rows"] and not report.get("skipped"):
        failed = [*failed, "nothing was timed"]
    for line in failed:
        print(f"failed: {line}")
    return 1 if failed else 0
