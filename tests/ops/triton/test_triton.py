"""What is true of Triton's kernels alone; tests/ops/test_contract.py has what all share."""

import contextlib
import importlib
import inspect
import sys

import pytest
import torch

from adaptive_kernels.ops import fields
from adaptive_kernels.ops.triton import launch as triton_kernels
from tests.support import problems
from tests.support.implementations import INTERPRETED
from tests.support.interpreted import triton


def test_the_kernel_takes_the_fields_in_their_order():
    for kernel in triton_kernels.kernels():
        names = list(inspect.signature(kernel.fn).parameters)
        assert tuple(names[: len(fields.NAMES)]) == fields.NAMES


@pytest.mark.parametrize(
    ("rule", "max_skip", "launches"),
    [
        ("defect", 3, ["step", "run"]),
        ("defect", 0, ["step"]),
        ("every(3)", 3, ["step", "run"]),
        ("plan", 3, ["step", "run"]),
        ("never", 3, ["step"]),
        ("third_order", 3, ["step"] * 4),
        ("released", 3, ["step"] * 6),
    ],
)
def test_a_run_takes_two_launches_unless_its_steps_need_sums(rule, max_skip, launches, monkeypatch):
    """One for each step that some sample may take where they do."""
    made = []

    class Launcher:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *values, **named: made.append(self.name)

    monkeypatch.setattr(triton_kernels, "kernels", lambda: (Launcher("step"), Launcher("run")))
    monkeypatch.setattr(torch.accelerator, "device_index", lambda _: contextlib.nullcontext())
    table = problems.table(12)
    config = problems.config(rule, table, max_skip=max_skip)
    triton_kernels.advance(*INTERPRETED.state(problems.state(table, 2, 64, config)).arguments())
    assert made == launches


def test_sums_of_more_programs_than_are_added_at_a_time():
    table = problems.table(2)
    cpu = problems.state(table, 1, 257 * 1024, problems.config("released", table))
    cpu.model_output.copy_(problems.outputs(cpu, 0))
    one = INTERPRETED.state(cpu)
    for state in (cpu, one):
        state.step(True)
    problems.assert_same(one, cpu, ("measures", "score"))


def test_what_the_cpu_op_need_not_refuse():
    arguments = INTERPRETED.state(problems.ready("defect")).arguments()
    with pytest.raises(RuntimeError, match=r"^workspace must be given on a GPU$"):
        triton_kernels.step(*arguments._replace(workspace=None), True)
    odd = torch.zeros(arguments.workspace.numel() + 1).double()[1:].view_as(arguments.workspace)
    with pytest.raises(RuntimeError, match=r"^workspace must begin on a boundary of 16 bytes$"):
        triton_kernels.step(*arguments._replace(workspace=odd), True)
    elsewhere = arguments._replace(seed=torch.zeros(2, dtype=torch.int64, device="meta"))
    with pytest.raises(RuntimeError, match=r"^seed must be on cpu as latents is, got meta$"):
        triton_kernels.step(*elsewhere, True)
    for verb, more in ((triton_kernels.step, [True]), (triton_kernels.advance, [])):
        with pytest.raises(RuntimeError, match=r"^condition needs the CUDA library$"):
            verb(*arguments, *more, condition=0)
    with pytest.raises(TypeError, match="the arguments of step are latents, history"):
        triton_kernels.step(*arguments, True, None, 1)
    with pytest.raises(TypeError, match="the arguments of step are latents, history"):
        triton_kernels.step(arguments.latents)


def test_without_triton_the_module_imports_and_says_why(monkeypatch):
    assert triton_kernels.available() == (True, f"Triton {triton.__version__}")
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location(
        "adaptive_kernels.ops.triton.without_triton", triton_kernels.__file__
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    there, why = module.available()
    assert not there
    assert why.startswith("Triton cannot be imported: ")
