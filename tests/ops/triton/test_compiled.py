"""The Triton ops compile for GPUs that are not here: wide accesses, no spills, nothing fused."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from adaptive_kernels.ops.triton import launch as triton_kernels
from tests.support import problems
from tests.support.implementations import INTERPRETED
from tests.support.interpreted import triton


class Driver:
    """Of a GPU that is not here: what Triton asks of one in order to compile for it."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        cuda = self.target.startswith("sm_")
        about = ("cuda", int(self.target[3:]), 32) if cuda else ("hip", self.target, 64)
        return triton.backends.compiler.GPUTarget(*about)

    def get_current_device(self):
        # Triton remembers the target of a device: no number that one here may have.
        return 1000 + TARGETS.index(self.target)

    def get_current_stream(self, device):
        return 0


TARGETS = ["sm_80", "sm_90", "gfx942"]


def compiled(state, target, monkeypatch, whole=False):
    """What a step of this state would launch on a GPU whose tensors lie as these do.

    whole: what a run would launch, in their order.
    """
    kernels, launches = triton_kernels.kernels(), []

    class Launcher:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *values, **named: launches.append(
                self.kernel.warmup(*values, grid=grid, **named).asm
            )

    monkeypatch.setattr(triton_kernels, "kernels", lambda: [*map(Launcher, kernels)])
    # `set_active` could not be undone: `reset_active` needs a GPU.
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver(target))
    if whole:
        triton_kernels.advance(*state.arguments())
        return launches
    triton_kernels.step(*state.arguments(), True)
    return launches[0]


VARIANTS = {
    "third_order": {},
    "defect": {"history": 3, "guided": True, "dtype": torch.bfloat16},
    "released": {"history": 2, "stochastic": True, "dtype": torch.float16, "granularity": "batch"},
}
# Whose later steps are one launch.
RUNS = {
    "defect": VARIANTS["defect"],
    "every(2)": {"history": 2, "stochastic": True, "guided": True, "dtype": torch.float16},
    "plan": {},
}


def variant(rule, elements, history=1, stochastic=False, guided=False, **options):
    table = problems.table(8, history, stochastic=stochastic)
    config = problems.config(rule, table, granularity=options.get("granularity", "sample"))
    dtype = options.get("dtype", torch.float32)
    return INTERPRETED.state(problems.state(table, 2, elements, config, guided, dtype))


@pytest.mark.parametrize("rule", VARIANTS)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_compiles_for_nvidia_with_wide_accesses_and_no_spills(rule, target, monkeypatch, tmp_path):
    asm = compiled(variant(rule, 4096, **VARIANTS[rule]), target, monkeypatch)
    check_for_nvidia(asm, tmp_path)


@pytest.mark.parametrize("rule", RUNS)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_a_run_compiles_for_nvidia_as_two_launches(rule, target, monkeypatch, tmp_path):
    first, rest = compiled(variant(rule, 4096, **RUNS[rule]), target, monkeypatch, whole=True)
    assert "step_kernel" in first["ptx"] and "run_kernel" in rest["ptx"]
    check_for_nvidia(rest, tmp_path)


def check_for_nvidia(asm, tmp_path):
    for access in ("ld", "st"):
        assert len(re.findall(rf"{access}\.global\S*\.v4\.[bfu]32", asm["ptx"])) >= 4
        # Nothing of a row goes in smaller parts: what is left are scalars.
        assert not re.search(rf"{access}\.global\S*\.(v2\.|[bfu]16)", asm["ptx"])
    # An element has one value on every device.
    assert not re.search(r"fma\.rn|\.ftz|\.approx", asm["ptx"])
    assert "atom.global.gpu.acq_rel.add" in asm["ptx"]
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if tool.exists():
        file = tmp_path / "kernel.cubin"
        file.write_bytes(asm["cubin"])
        said = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True).stdout
        # ptxas puts a pair of scalars aside where 64 registers, and so twice the blocks, are near.
        spilled = int(re.search(rb"STACK:(\d+)", said)[1])
        assert spilled <= 8 and b"LOCAL:0" in said, said


@pytest.mark.parametrize("rule", VARIANTS)
def test_compiles_for_amd_with_wide_accesses_and_no_spills(rule, monkeypatch):
    check_for_amd(compiled(variant(rule, 4096, **VARIANTS[rule]), "gfx942", monkeypatch))


@pytest.mark.parametrize("rule", RUNS)
def test_a_run_compiles_for_amd_as_two_launches(rule, monkeypatch):
    _, rest = compiled(variant(rule, 4096, **RUNS[rule]), "gfx942", monkeypatch, whole=True)
    check_for_amd(rest)


def check_for_amd(asm):
    assert asm["hsaco"]
    for access in ("load", "store"):
        assert re.search(rf"(global|buffer)_{access}_dwordx4", asm["amdgcn"])
    # Scalar registers spill into lanes of vector registers; those would spill into memory.
    assert re.findall(r"vgpr_spill_count:\s+(\d+)", asm["amdgcn"]) == ["0"]


@pytest.mark.parametrize("elements", [1, 1001])
def test_compiles_for_rows_that_no_vector_fits(elements, monkeypatch):
    state = variant("third_order", elements)
    state.noise = torch.zeros(8, 2, elements)
    asm = compiled(state, "sm_90", monkeypatch)
    assert asm["cubin"]
    assert not re.search(r"ld\.global\S*\.v[24]", asm["ptx"])
