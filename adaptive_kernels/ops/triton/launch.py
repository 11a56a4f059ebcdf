"""`step` and `advance` in Triton, for GPUs that the compiled CUDA library does not serve.

This module checks and launches: one `step.step_kernel` per solver step, or one of them and a
`run.run_kernel` for all further steps. Triton is imported by the first launch, so that importing
the module needs none. A sample's programs depend on its size alone, and so do its sums; the
reference serves tensors without elements.
"""

import functools

import torch

from ...rules import criteria
from ...rules.criteria import Rule, longest_run
from .. import reference
from ..check import Sizes, check
from ..fields import FIELDS, RULE, Arguments, bind

BLOCK = 1024  # elements of a program; the workspace has room for its sums from 512 on
SUMS_OF_ALL = {"first", "third"}  # that each step's own decision needs
LARGEST = 2**31 - 1  # no counter of a sampling passes int32


@functools.cache
def available() -> tuple[bool, str]:
    """(whether Triton can be imported, why)."""
    try:
        import triton
    except Exception as error:
        return False, f"Triton cannot be imported: {error}"
    return True, f"Triton {triton.__version__}"


def step(*arguments, **named) -> None:
    """One solver update of every sample that does not wait for the network; see `ops.step`."""
    a, own = bind("step", arguments, named)
    _run(a, _checked(a, own["condition"]), [own["fresh"]])


def advance(*arguments, **named) -> None:
    """The whole run of every sample, until every sample waits; see `ops.advance`.

    Two launches where what the first step has measured decides the whole run. Where every decision
    needs sums over its own step, all programs of a sample must have come there, which in Triton is
    the end of a launch: then `step`, as often as the longest run has steps.
    """
    a, own = bind("advance", arguments, named)
    sizes = _checked(a, own["condition"])
    longest = longest_run(Rule(*(getattr(a, name) for name in RULE)), sizes.T)
    alone = sizes.N > 0 and not SUMS_OF_ALL & criteria.of(a.criterion).sums
    if alone and longest > 1:
        _run(a, sizes, [True], rest=True)
    else:
        _run(a, sizes, [k == 0 for k in range(longest)])


def _checked(a: Arguments, condition: int | None) -> Sizes:
    sizes = check(a, condition)
    if a.workspace is None:
        raise RuntimeError("workspace must be given on a GPU")
    return sizes


@functools.cache
def kernels():
    """(that of a step, that of a run's later steps)."""
    from .run import run_kernel
    from .step import step_kernel

    return step_kernel, run_kernel


def _run(a: Arguments, sizes: Sizes, fresh: list[bool], rest: bool = False) -> None:
    """Launches a step for each of `fresh`, and with `rest` the steps after them."""
    if sizes.B == 0 or sizes.N == 0:
        # Nothing to launch on, but samples of no elements take their steps.
        for first in fresh:
            reference.unchecked_step(a, first)
        return
    programs = -(-sizes.N // BLOCK)
    numbers = (
        *(sizes.R, sizes.B, sizes.N, sizes.T, sizes.G, sizes.Q, programs, a.workspace.stride(0)),
        *(min(a.max_skip, LARGEST), min(a.warmup, LARGEST)),
    )
    constants = {
        "K": sizes.K,
        "CRITERION": a.criterion,
        "STAGES": a.stages,
        "GUIDED": sizes.M == 2 * sizes.B,
        "BLOCK": BLOCK,
        "enable_fp_fusion": False,  # an element has one value on every device: csrc/core/step.h
    }
    step_kernel, run_kernel = kernels()
    grid, tensors = (programs * sizes.B,), a[: len(FIELDS)]
    with torch.accelerator.device_index(a.latents.device.index):
        for first in fresh:
            step_kernel[grid](*tensors, *numbers, int(first), BATCH_WIDE=a.batch_wide, **constants)
        if rest:
            run_kernel[grid](*tensors, *numbers, **constants)
