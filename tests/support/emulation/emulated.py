"""The CUDA kernels on the CPU, built with this folder in place of CUDA; states that call them."""

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path
from shutil import which

import torch
from torch.utils import cpp_extension

from adaptive_kernels import ops

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
ROOT = HERE.parents[2]
ORDERS = {"in order": 0, "reversed": 1, "random": 2}
NAMESPACE = "adaptive_kernels_emulated"
FLAGS = [
    *["-DTORCH_TARGET_VERSION=0x020b000000000000", "-std=c++17", "-fPIC", "-shared", "-g1"],
    *["-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi", "-fvisibility=hidden"],
    # As in setup.py: the arithmetic of the CPU library.
    *["-ffp-contract=off", "-fno-math-errno"],
]
SANITIZE = [
    "-O0",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]


def compiler():
    return which(os.environ.get("CXX", "g++"))


loaded = {}


def library(sanitized=False):
    """The library's controls; the first call of a process builds what is not built and loads it."""
    if not loaded:
        loaded["controls"] = load(sanitized)
    return loaded["controls"]


def load(sanitized):
    sources = sorted([*(ROOT / "csrc").rglob("*.h"), *INCLUDE.iterdir(), HERE / "emulated.cpp"])
    flags = FLAGS + SANITIZE * sanitized
    text = repr((flags, torch.__version__)).encode()
    key = hashlib.sha256(text + b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    built = ROOT / "build" / "emulation" / f"{key}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        include = [f"-I{path}" for path in (INCLUDE, ROOT / "csrc", *cpp_extension.include_paths())]
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        unfinished = built.with_suffix(f".{os.getpid()}")
        command = [compiler(), *flags, *include, HERE / "emulated.cpp", "-o", unfinished]
        compilation = subprocess.run(
            [*command, *libraries, "-ltorch", "-ltorch_cpu", "-lc10"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert compilation.returncode == 0, compilation.stderr
        unfinished.rename(built)
    defined = torch.library.Library(NAMESPACE, "DEF")
    for op in (ops.step, ops.advance):
        defined.define(str(op._schema).removeprefix("adaptive_kernels::"))
    torch.ops.load_library(built)
    controls = ctypes.CDLL(str(built))
    controls.emulation_set.argtypes = [ctypes.c_int] * 5 + [ctypes.c_uint64]
    controls.defined = defined  # the schemas live as long as this object
    return controls


def set_device(
    multiprocessors=4, blocks=2, cooperative=True, order="random", seed=0, shared_memory=227 << 10
):
    """A device of multiprocessors with room for so many blocks and bytes of shared memory each."""
    numbers = (multiprocessors, blocks, shared_memory, cooperative, ORDERS[order], seed)
    library().emulation_set(*numbers)


def counters():
    """Launches since set_device: all, cooperative, what was told to a graph, the error left."""
    values = (ctypes.c_int64 * 6)()
    library().emulation_get(values)
    names = ("launches", "cooperative", "condition_calls", "condition", "value", "error")
    return dict(zip(names, values, strict=True))
