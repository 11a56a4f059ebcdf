"""What the command `info` says of the ops."""

import torch

from ..version import __version__
from .dispatch import LOADED, implementation


def info() -> dict:
    """What was built, what serves each device and why, as a dict of strings and booleans."""
    return {
        "version": __version__,
        "torch": torch.__version__,
        "libraries": {name: {"loaded": ok, "why": why} for name, (ok, why) in LOADED.items()},
        "serves": {
            device: dict(zip(("implementation", "why"), implementation(device), strict=True))
            for device in ("cpu", "cuda", "xpu", "other")
        },
    }
