"""Builds the op libraries: `_C` (CPU) always, `_C_cuda` where nvcc and a CUDA build of torch are.

Both use LibTorch's stable ABI with target 2.11, so one build runs on torch 2.11 and newer.
"""

from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
HEADERS = [str(path) for path in Path("csrc").glob("*.h")]
# No contraction: an element has one value whatever the vector width (csrc/step.h).
CXX = [
    *[TORCH_TARGET, "-O3", "-std=c++17", "-Wall", "-fvisibility=hidden"],
    *["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
]
NVCC = [TORCH_TARGET, "-O3", "-std=c++17", "-DUSE_CUDA", "--threads=2"]


def cpu_library():
    return cpp_extension.CppExtension(
        "adaptive_kernels._C",
        ["csrc/step_cpu.cpp"],
        depends=HEADERS,
        extra_compile_args={"cxx": CXX},
        py_limited_api=True,
    )


def cuda_library():
    return cpp_extension.CUDAExtension(
        "adaptive_kernels._C_cuda",
        ["csrc/step_cuda.cu"],
        depends=HEADERS,
        extra_compile_args={"cxx": [*CXX, "-DUSE_CUDA"], "nvcc": NVCC},
        py_limited_api=True,
    )


def has_cuda():
    return torch.version.cuda is not None and cpp_extension.CUDA_HOME is not None


setup(
    ext_modules=[cpu_library()] + ([cuda_library()] if has_cuda() and Path("csrc/step_cuda.cu").exists() else []),
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)},
)
