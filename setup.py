"""Builds the op libraries: `_C` (CPU) always, `_C_cuda` where nvcc and a CUDA build of torch are.

Both use LibTorch's stable ABI with target 2.11, so one build runs on torch 2.11 and newer. Beside
`_C_cuda` stands `_graph`, a module of this Python that builds loops inside CUDA graphs.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import ClassVar

import torch
from setuptools import Command, Extension, setup
from torch.utils import cpp_extension

TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
HEADERS = [str(path) for path in Path("csrc").rglob("*.h")]
INCLUDE = str(Path("csrc").resolve())
# No contraction: an element has one value whatever the vector width (csrc/core/step.h).
CXX = [
    *[TORCH_TARGET, "-O3", "-std=c++17", "-Wall", "-fvisibility=hidden"],
    # No debug sections and no folder of the building machine in the library.
    *["-g0", f"-ffile-prefix-map={Path.cwd()}=."],
    *["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"],
]
NVCC = [
    *[TORCH_TARGET, "-O3", "-std=c++17", "-DUSE_CUDA", "-fmad=false", "--threads=2"],
    # nvcc takes a list there, by commas.
    "-Xcompiler=" + f"-ffile-prefix-map={Path.cwd()}=.".replace(",", r"\,"),
]


def cpu_library():
    return cpp_extension.CppExtension(
        "adaptive_kernels.ops._C",
        ["csrc/cpu/step.cpp"],
        depends=HEADERS,
        include_dirs=[INCLUDE],
        extra_compile_args={"cxx": CXX},
        py_limited_api=True,
    )


def cuda_library(toolkit, version):
    known = ["75", "80", "90"] + (["100", "120"] if version >= (12, 8) else [])
    codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in known]
    # What a driver compiles for GPUs that are not named: not of 12.0, as those of 11.0 take less.
    rest = "100" if "100" in known else known[-1]
    codes.append(f"-gencode=arch=compute_{rest},code=compute_{rest}")
    # A driver that takes CUDA 13 at all unpacks what is packed so; 43 MB of kernels become 5.
    packed = ["--compress-mode=size"] if version >= (13, 0) else ["-Xfatbin=-compress-all"]
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        codes = []  # torch reads the list itself
    return cpp_extension.CUDAExtension(
        "adaptive_kernels.ops._C_cuda",
        ["csrc/cuda/step.cu"],
        depends=HEADERS,
        include_dirs=[INCLUDE],
        library_dirs=[str(toolkit / "lib64"), str(toolkit / "lib")],
        extra_compile_args={"cxx": [*CXX, "-DUSE_CUDA"], "nvcc": [*NVCC, *packed, *codes]},
        py_limited_api=True,
        optional=True,
    )


def graph_module(toolkit):
    """Needs the toolkit's header alone: the driver is looked for at run time, torch never."""
    import pybind11

    return Extension(
        "adaptive_kernels.executors._graph",
        ["csrc/graph/module.cpp"],
        depends=HEADERS,
        include_dirs=[INCLUDE, pybind11.get_include(), str(toolkit / "include")],
        libraries=["dl"],
        extra_compile_args={"cxx": CXX},
        language="c++",
        optional=True,
    )


class Build(cpp_extension.BuildExtension):
    """Builds what it can: where CUDA fails, the CPU library still serves."""

    def build_extension(self, extension):
        try:
            super().build_extension(extension)
        except Exception as error:
            if not extension.optional:
                raise
            # What an earlier build left would serve in its place, unasked.
            *folder, name = extension.name.split(".")
            for earlier in Path(*folder).glob(f"{name}.*.so"):
                earlier.unlink()
            self.warn(f"{extension.name} was not built: {error}")


def cuda_toolkit():
    """(folder, version) of nvcc, if torch is a CUDA build of the same major version."""
    nvcc = Path(cpp_extension.CUDA_HOME or "", "bin", "nvcc")
    if torch.version.cuda is None or not nvcc.exists():
        return None

    def ask(pattern, *arguments):
        said = subprocess.run([nvcc, *arguments], capture_output=True, text=True)
        return re.search(pattern, said.stdout + said.stderr)

    release = ask(r"release (\d+)\.(\d+)", "--version")
    # nvcc may be a wrapper elsewhere; it knows its own folder.
    top = ask(r"TOP=(.*)", "--dryrun", "-c", "x.cu")
    if not release or not top or release[1] != torch.version.cuda.split(".")[0]:
        return None
    return Path(top[1].strip()).resolve(), tuple(map(int, release.groups()))


class What(Command):
    """Prints what a build would compile here: pip hides a build's own words."""

    user_options: ClassVar[list] = []

    def initialize_options(self):
        pass

    def finalize_options(self):
        pass

    def run(self):
        libraries = "the CPU library alone: no nvcc of this torch's CUDA version is here"
        if torch.version.cuda is None:
            libraries = "the CPU library alone: this torch is not a CUDA build"
        elif toolkit:
            gpus = os.environ.get("TORCH_CUDA_ARCH_LIST", "several GPUs")
            libraries = f"the CPU and the CUDA library (some minutes: kernels for {gpus})"
        print(f"compiling {libraries}")


toolkit = cuda_toolkit()
extensions = [cpu_library()]
if toolkit:
    extensions += [cuda_library(*toolkit), graph_module(toolkit[0])]
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": Build, "what": What},
    # The libraries know nothing of Python: one wheel of them serves every version from 3.10 on.
    options={} if toolkit else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
