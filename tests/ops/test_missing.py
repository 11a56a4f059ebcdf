"""What is said where a compiled library is not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from adaptive_kernels.ops.missing import why_missing

PACKAGE = Path(__file__).parents[2] / "adaptive_kernels"


@pytest.fixture
def installed(tmp_path):
    """A folder that pip might have installed the package into, the library with it."""
    ops = tmp_path / "site-packages" / "adaptive_kernels" / "ops"
    ops.mkdir(parents=True)
    (ops / "_C.abi3.so").touch()
    return ops


def test_a_checkout_that_hides_the_installed_package_is_named(tmp_path, installed, monkeypatch):
    here = tmp_path / "checkout" / "adaptive_kernels" / "ops"
    here.mkdir(parents=True)
    (tmp_path / "checkout" / "setup.py").touch()
    monkeypatch.chdir(tmp_path / "checkout")
    said = why_missing("_C", "C++ compiler", here, ["", str(installed.parents[1])])
    assert f"not built in {here.parent}, which hides" in said and str(installed.parent) in said
    # Nothing is hidden, where nothing else holds the library.
    said = why_missing("_C_cuda", "nvcc of CUDA 13", here, ["", str(installed.parents[1])])
    assert said.startswith(f"not built in the checkout {here.parents[1]}") and "nvcc" in said


def test_an_installation_without_a_compiler_says_so(installed):
    said = why_missing("_C_cuda", "nvcc", installed, [str(installed.parents[1])])
    assert said == "not built: installing found no nvcc that works"


def test_info_says_it_from_the_checkout(tmp_path, installed):
    """As a user runs it: a checkout without the library, the installed package behind it."""
    checkout = tmp_path / "checkout"
    for file in PACKAGE.rglob("*.py"):
        copy = checkout / "adaptive_kernels" / file.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    line = [sys.executable, "-m", "adaptive_kernels", "info"]
    run = subprocess.run(
        line,
        cwd=checkout,
        env={"PYTHONPATH": str(installed.parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"which hides the installed package in {installed.parent}" in run.stdout
    assert "installing found" not in run.stdout
