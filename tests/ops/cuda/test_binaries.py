"""The compiled CUDA kernels: no spills, no more registers than recorded, 16 bytes at a time.

python -m tests.ops.cuda.test_binaries > tests/ops/cuda/registers.json      records what was built
"""

import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECORD = Path(__file__).with_name("registers.json")
ARCHITECTURES = {"sm_80", "sm_90", "sm_100", "sm_120"}
# filled, history, aligned, and filled, history: what launch_step and launch_advance choose from.
KERNELS = {
    *(f"step_kernel<{f}, {k}, true>" for f in ("false", "true") for k in (1, 3, 8)),
    *(f"step_kernel<{f}, 8, false>" for f in ("false", "true")),
    *(f"advance_kernel<{f}, {k}>" for f in ("false", "true") for k in (1, 3)),
}


def binary():
    built = sorted((ROOT / "adaptive_kernels" / "ops").glob("_C_cuda.*.so"))
    return built[-1] if built else None


def inspect(*options):
    """What cuobjdump, of Triton's package, says of the library."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, *options, binary()], capture_output=True, text=True, check=True)
    return said.stdout


def kernel_name(mangled):
    """step_kernel<true, 3, false> of _ZN2ak11step_kernelILb1ELi3ELb0EEE..."""
    name, arguments = re.match(r"_ZN2ak\d+(\w+?_kernel)I((?:L[bi]\d+E)+)E", mangled).groups()
    values = re.findall(r"L([bi])(\d+)E", arguments)
    spelled = (("false", "true")[int(v)] if kind == "b" else v for kind, v in values)
    return f"{name}<{', '.join(spelled)}>"


@cache
def resources():
    """{architecture: {kernel: {REG, STACK, LOCAL, SHARED, ...}}}"""
    found, architecture, kernel = {}, None, None
    for line in inspect("-res-usage").splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function (\w+):", line):
            kernel = kernel_name(match[1])
        elif "REG:" in line:
            numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            found.setdefault(architecture, {})[kernel] = numbers
    return found


def compiler():
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    return re.search(r"release ([\d.]+)", said)[1]


needs_binary = pytest.mark.skipif(binary() is None, reason="the CUDA library was not built")


@needs_binary
def test_every_kernel_is_there_for_every_architecture():
    for architecture in ARCHITECTURES:
        assert set(resources()[architecture]) == KERNELS


@needs_binary
def test_no_kernel_spills():
    for architecture, kernels in resources().items():
        for kernel, used in kernels.items():
            assert used["STACK"] == used["LOCAL"] == 0, (architecture, kernel, used)


@needs_binary
def test_no_kernel_takes_more_registers_than_recorded():
    recorded = json.loads(RECORD.read_text())
    if compiler() != recorded["nvcc"]:
        pytest.skip(f"registers were recorded with nvcc {recorded['nvcc']}, not {compiler()}")
    for architecture in ARCHITECTURES:
        for kernel, used in resources()[architecture].items():
            most = recorded["registers"][architecture][kernel]
            assert used["REG"] <= most, (architecture, kernel, used["REG"], most)


@needs_binary
def test_kernels_move_16_bytes_at_a_time():
    """SASS of sm_90: rows on 16-byte boundaries are read and written in 128 bits."""
    kernel, found = None, {}
    for line in inspect("-sass", "-arch", "sm_90").splitlines():
        if match := re.search(r"Function : (\w+)", line):
            kernel = kernel_name(match[1])
        elif match := re.search(r"\s((?:LDG|STG|LDL|STL)[.\w]*)\s", line):
            found.setdefault(kernel, Counter())[match[1]] += 1
    assert set(found) == KERNELS
    for kernel, counts in found.items():
        wide = {op: sum(n for name, n in counts.items() if name.startswith(op) and "128" in name)
                for op in ("LDG", "STG")}  # fmt: skip
        assert not any(name.startswith(("LDL", "STL")) for name in counts), (kernel, counts)
        if kernel.endswith("8, false>"):
            assert wide == {"LDG": 0, "STG": 0}
        else:
            # Latents, differences and the output; new latents and the network's input.
            assert wide["LDG"] >= 6 and wide["STG"] >= 3, (kernel, counts)


if __name__ == "__main__":
    registers = {
        architecture: {kernel: used["REG"] for kernel, used in sorted(kernels.items())}
        for architecture, kernels in resources().items()
        if architecture in ARCHITECTURES
    }
    json.dump({"nvcc": compiler(), "registers": registers}, sys.stdout, indent=2)
    print()
