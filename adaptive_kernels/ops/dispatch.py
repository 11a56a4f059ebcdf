"""The compiled libraries, and which implementation of the ops serves which device.

`_C` is the CPU's and `_C_cuda` CUDA's; where the one of a GPU is missing, Triton serves it, and
`reference` whatever is left.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from . import reference
from .missing import built, why_missing
from .schema import LIBRARY, OPS
from .triton import launch as triton


def _load(name: str) -> tuple[bool, str]:
    """Loads a compiled library that stands beside this file: (loaded, why)."""
    cuda = torch.version.cuda
    if name == "_C_cuda" and cuda is None:
        return False, f"this torch is a {'ROCm' if torch.version.hip else 'CPU'} build"
    files = built(Path(__file__).parent, name)
    if not files:
        tool = "C++ compiler" if cuda is None or name == "_C" else f"nvcc of CUDA {cuda[:2]}"
        return False, why_missing(name, tool)
    try:
        torch.ops.load_library(files[-1])
    except OSError as error:
        return False, f"{files[-1].name} does not load: {error}"
    return True, f"loaded {files[-1].name}"


def _portable(name: str) -> Callable[..., None]:
    """The op in Triton, or in plain torch where Triton cannot be imported."""

    def run(*arguments, **named):
        warn_if_slow(arguments[0].device.type)
        module = triton if triton.available()[0] else reference
        getattr(module, name)(*arguments, **named)

    return run


LOADED = {name: _load(name) for name in ("_C", "_C_cuda")}
for _name in OPS:
    LIBRARY.impl(_name, _portable(_name), "XPU")
    if not LOADED["_C_cuda"][0]:  # ROCm's tensors have this key too
        LIBRARY.impl(_name, _portable(_name), "CUDA")
REFERENCE = "reference (plain torch)"
COMPILED = {"cpu": ("_C", "compiled C++"), "cuda": ("_C_cuda", "compiled CUDA")}


def implementation(device: str) -> tuple[str, str]:
    """(implementation, why) that serves a device type such as "cpu" or "cuda"."""
    library, name = COMPILED.get(device, (None, None))
    loaded, why = LOADED[library] if library else (False, "no compiled library for this device")
    if loaded:
        if device == "cuda" and not torch.cuda.is_available():
            why += "; no CUDA device is here"
        return name, why
    if device not in ("cuda", "xpu"):
        return REFERENCE, why if library else f"{why}; the reference needs a device with float64"
    usable, why_triton = triton.available()
    return ("Triton" if usable else REFERENCE), f"{why}; {why_triton}"


@functools.cache
def warn_if_slow(device: str) -> None:
    """Says once per device type that a slower implementation than its best serves it, and why."""
    name, why = implementation(device)
    # Where no library can be compiled for a device, Triton is its best.
    best = "Triton" if device == "xpu" or torch.version.hip else COMPILED.get(device, ("", ""))[1]
    if name != best:
        warnings.warn(
            f"{device} tensors are served by the slower {name}: {why}",
            RuntimeWarning,
            stacklevel=3,
        )
