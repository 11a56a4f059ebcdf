"""Which executors of the sampler work on a device, and why not: all CUDA-graph checks are here."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..ops import dispatch

# The fastest first; the order in which "auto" tries them.
EXECUTORS = ("graph", "groups", "eager")


@dataclass(frozen=True)
class Facts:
    """What decides it, gathered once; the rules below look at nothing else."""

    device: str  # type of the latents' device
    present: bool  # whether torch finds such a device here
    rocm: bool  # whether "cuda" means ROCm
    implementation: tuple[str, str]  # ops.implementation: what serves the ops there, and why
    loop: str | None  # why loops inside graphs cannot be built here; None: they can


@functools.cache
def driver() -> tuple[Any, str]:
    """(the CUDA driver that builds loops inside graphs, or None, why)."""
    try:
        from . import _graph
    except ImportError as error:
        return (
            None,
            f"adaptive_kernels.executors._graph was not built, or not for this Python: {error}",
        )
    try:
        cuda = _graph.Driver()
    except _graph.DriverError as error:
        return None, str(error)
    return cuda, f"the driver knows CUDA {cuda.version // 1000}.{cuda.version % 1000 // 10}"


def facts(device: str) -> Facts:
    """The facts of this machine for a device type such as "cpu" or "cuda"."""
    present = device != "cuda" or torch.cuda.is_available()
    # The driver is not woken where there is nothing for it.
    cuda, why = driver() if device == "cuda" and present else (None, "no CUDA device is here")
    return Facts(
        device=device,
        present=present,
        rocm=torch.version.hip is not None,
        implementation=dispatch.implementation(device),
        loop=None if cuda else why,
    )


def executors(machine: Facts) -> dict[str, tuple[bool, str]]:
    """{executor: (whether it works there, why)}, in the order of `EXECUTORS`."""
    eager = (
        machine.present,
        "works on any device" if machine.present else "torch finds no such device here",
    )
    return {"graph": _graph(machine), "groups": _groups(machine), "eager": eager}


def _groups(machine: Facts) -> tuple[bool, str]:
    if machine.device != "cuda":
        return False, f"CUDA graphs need a CUDA or ROCm device, got {machine.device}"
    if not machine.present:
        return False, "torch finds no CUDA or ROCm device here"
    name, why = machine.implementation
    if name not in (dispatch.COMPILED["cuda"][1], "Triton"):
        return False, f"the ops are served by the {name}, which a graph cannot hold: {why}"
    return True, "CUDA graphs, launched ahead by the host"


def _graph(machine: Facts) -> tuple[bool, str]:
    works, why = _groups(machine)
    if not works:
        return works, why
    if machine.rocm:
        return False, "ROCm has no conditional nodes"
    name, why = machine.implementation
    if name != dispatch.COMPILED["cuda"][1]:
        return False, f"only the compiled CUDA library can end a loop inside a graph: {why}"
    if machine.loop is not None:
        return False, machine.loop
    return True, "conditional nodes: one launch for the whole loop"


def info() -> dict[str, dict[str, dict]]:
    """{device: {executor: {"works": bool, "why": str}}} of this machine."""
    return {
        device: {
            name: {"works": works, "why": why}
            for name, (works, why) in executors(facts(device)).items()
        }
        for device in ("cpu", "cuda", "xpu")
    }


def loop_module() -> dict[str, bool | str]:
    """Whether the module that builds loops inside graphs was built here, as `ops.info` has it."""
    try:
        from . import _graph
    except ImportError as error:
        return {"loaded": False, "why": f"not built, or not for this Python: {error}"}
    return {"loaded": True, "why": f"loaded {Path(_graph.__file__).name}"}
