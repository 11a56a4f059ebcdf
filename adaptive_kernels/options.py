"""Values of the command line, refused with what was expected and what came."""

import argparse
import math
from collections.abc import Callable

JSON = "print JSON on stdout and everything else on stderr"


def integer(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
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


def nonnegative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text!r}")
    return value
