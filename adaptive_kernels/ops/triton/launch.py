"""`step` and `advance` in Triton, for GPUs that the compiled CUDA library does not serve.

This module checks and launches, one `step.step_kernel` per solver step. Triton is imported
by the first launch, so that importing the module needs none. A sample's programs depend on its size
alone, and so do its sums; the reference serves tensors without elements.
"""

import functools
import inspect

import torch

from .. import reference

BLOCK = 1024  # elements of a program; the workspace has room for its sums from 512 on
PIECE, SUMS = 2048, 16  # the workspace holds [1 + pieces, 16] of a sample: csrc/op/args.h
SCALARS, WEIGHTS, MAX_HISTORY = reference.SCALARS, 7, 8
LARGEST = 2**31 - 1  # no counter of a sampling passes int32

_STEP = tuple(inspect.signature(reference.step).parameters)
_ADVANCE = tuple(name for name in _STEP if name != "fresh")
_TENSORS = _STEP[: _STEP.index("criterion")]
_WRITTEN = {*_STEP[: _STEP.index("model_output")]}
_FLOAT = (torch.float32,)
_NETWORK = (torch.float32, torch.float16, torch.bfloat16)


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
    values = _bind(_STEP, arguments, named)
    _run(values, [values["fresh"]])


def advance(*arguments, **named) -> None:
    """The whole run of every sample: `step` until every sample waits; see `ops.advance`."""
    values = _bind(_ADVANCE, arguments, named)
    _run(values, [k == 0 for k in range(longest_run(values))])


def longest_run(values: dict) -> int:
    """Rows a sample can take on one network output: `longest_run` of csrc/core/decide.h."""
    criterion, max_skip, steps = values["criterion"], values["max_skip"], values["rows"].shape[0]
    if criterion == reference.RELEASED:
        max_skip = max(max_skip, 5)  # its guard wakes late
    skips = 0 if criterion == reference.NEVER else min(max_skip, steps)
    return min((skips + 1) * values["stages"], steps)


def _bind(names: tuple[str, ...], arguments: tuple, named: dict) -> dict:
    values = {"condition": None, **dict(zip(names, arguments, strict=False)), **named}
    if len(arguments) > len(names) or values.keys() != set(names):
        raise TypeError(f"the arguments are {', '.join(names)}")
    return values


@functools.cache
def kernel():
    from .step import step_kernel

    return step_kernel


def _run(values: dict, fresh: list[bool]) -> None:
    if values["condition"] is not None:
        raise RuntimeError("condition needs the CUDA library")
    _check(values)
    latents, weights, run_cost = values["latents"], values["weights"], values["run_cost"]
    R, B, N = latents.shape
    T, width = values["rows"].shape
    if B == 0 or N == 0:
        # Nothing to launch on, but samples of no elements take their steps.
        for first in fresh:
            reference.step(*({**values, "fresh": first}[name] for name in _STEP))
        return
    pieces = -(-N // BLOCK)
    sizes = (
        *(R, B, N, T, 0 if weights is None else weights.shape[1]),
        *(0 if run_cost is None else run_cost.shape[2], pieces, values["workspace"].stride(0)),
        *(min(values[name], LARGEST) for name in ("max_skip", "warmup")),
    )
    constants = {
        "K": width - SCALARS,
        "CRITERION": values["criterion"],
        "STAGES": values["stages"],
        "GUIDED": values["model_output"].shape[0] == 2 * B,
        "BATCH_WIDE": values["batch_wide"],
        "BLOCK": BLOCK,
        "enable_fp_fusion": False,  # an element has one value on every device: csrc/core/step.h
    }
    launch = kernel()[(pieces * B,)]
    tensors = [values[name] for name in _TENSORS]
    with torch.accelerator.device_index(latents.device.index):
        for first in fresh:
            launch(*tensors, *sizes, int(first), **constants)


def _text(values) -> str:
    return f"({', '.join(map(str, values))})"


def _name(*dtypes: torch.dtype) -> str:
    *most, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{', '.join(most)} or {last}" if most else last


def _check(values: dict) -> None:
    """Raises what csrc/op/check.h raises, in its words; text is put together only to be said."""
    if reason := _wrong_rule(values) or _wrong_size(values):
        raise RuntimeError(reason)
    device = values["latents"].device
    for name, (dtypes, shape) in _expected(values).items():
        tensor = values[name]
        if tensor.dtype not in dtypes:
            reason = f"be {_name(*dtypes)}, got {_name(tensor.dtype)}"
        elif tensor.shape != shape:
            reason = f"have shape {_text(shape)}, got {_text(tensor.shape)}"
        elif not tensor.is_contiguous():
            reason = f"be contiguous, got strides {_text(tensor.stride())}"
        elif tensor.device != device:
            reason = f"be on {device} as latents is, got {tensor.device}"
        else:
            continue
        raise RuntimeError(f"{name} must {reason}")
    _check_apart(values)


def _wrong_rule(values: dict) -> str | None:
    criterion, outputs = values["criterion"], values["outputs"]
    if not reference.NEVER <= criterion <= reference.PLAN:
        return f"criterion must be 0 to {reference.PLAN}, got {criterion}"
    least = {reference.THIRD_ORDER: 3, reference.RELEASED: 4, reference.DEFECT: 3}.get(criterion, 1)
    for name, lowest, which in (
        ("max_skip", 0, ""),
        ("stages", 1, ""),
        ("warmup", least, " for this criterion"),
    ):
        if values[name] < lowest:
            return f"{name} must be at least {lowest}{which}, got {values[name]}"
    if (outputs is None) != (values["weights"] is None):
        return "outputs and weights must be given together"
    decides = criterion in (reference.DEFECT, reference.PLAN)
    if decides and (outputs is None or values["run_cost"] is None):
        return "outputs, weights and run_cost must be given for this criterion"
    return None


def _wrong_size(values: dict) -> str | None:
    """What is wrong with the tensors that the shapes of the others follow from."""
    latents, rows, output = values["latents"], values["rows"], values["model_output"]
    weights, run_cost, workspace = values["weights"], values["run_cost"], values["workspace"]
    if latents.dim() != 3:
        return f"latents must have 3 dimensions [R, B, N], got {latents.dim()}"
    if rows.dim() != 2 or not len(rows) or not 1 <= rows.shape[1] - SCALARS <= MAX_HISTORY:
        shape = f"[T, {SCALARS} + K] with T >= 1 and 1 <= K <= {MAX_HISTORY}"
        return f"rows must have shape {shape}, got {_text(rows.shape)}"
    if output.dim() != 2:
        return f"model_output must have 2 dimensions, got {output.dim()}"
    (R, B, N), n, least = latents.shape, output.shape[0], 3 * values["stages"] + 1
    if least > R:
        return f"latents must hold at least {least} steps, got {R}"
    if n not in (B, 2 * B):
        return f"model_output must have {B} or {2 * B} rows, got {n}"
    if weights is not None and (weights.dim() != 4 or not weights.shape[1]):
        shape = f"[T, G, G, {WEIGHTS}] with G >= 1"
        return f"weights must have shape {shape}, got {_text(weights.shape)}"
    both = weights is not None and run_cost is not None
    if both and (run_cost.dim() != 3 or not run_cost.shape[2]):
        return f"run_cost must have shape [T, G, Q] with Q >= 1, got {_text(run_cost.shape)}"
    pieces = -(-N // PIECE)
    if workspace is None or workspace.dim() != 3 or workspace.shape[1] <= pieces:
        got = None if workspace is None else _text(workspace.shape)
        return f"workspace must have shape [B, P, {SUMS}] with P > {pieces}, got {got}"
    return None


def _expected(values: dict) -> dict[str, tuple]:
    """(dtypes, shape) of every tensor that is given and used."""
    (R, B, N), (T, width) = values["latents"].shape, values["rows"].shape
    n, K = values["model_output"].shape[0], width - SCALARS
    expected = {
        "latents": (_FLOAT, (R, B, N)),
        "history": (_FLOAT, (K - 1, B, N)),
        "model_input": (_NETWORK, (n, N)),
        "timestep": ((torch.float32, torch.int64), (n,)),
        "progress": ((torch.int32,), (5, B)),
        "norms": ((torch.float64,), (B, 2)),
        "refreshed": ((torch.bool,), (T, B)),
        "score": (_FLOAT, (T, B)),
        "workspace": ((torch.float64,), (B, values["workspace"].shape[1], SUMS)),
        "model_output": (_NETWORK, (n, N)),
        "guidance_scale": (_FLOAT, (B,)),
        "threshold": (_FLOAT, (B,)),
        "rows": (_FLOAT, (T, width)),
        "seed": ((torch.int64,), (B,)),
    }
    if values["weights"] is not None:
        G = values["weights"].shape[1]
        expected["outputs"] = _FLOAT, (reference.OUTPUTS, B, N)
        expected["weights"] = _FLOAT, (T, G, G, WEIGHTS)
        if values["run_cost"] is not None:
            expected["run_cost"] = _FLOAT, (T, G, values["run_cost"].shape[2])
    if values["noise"] is not None:
        expected["noise"] = _FLOAT, (T, B, N)
    return expected


def _check_apart(values: dict) -> None:
    """A written buffer may share no byte with any other argument."""
    extents = []
    for name in _TENSORS:
        if (tensor := values[name]) is not None:
            begin = tensor.data_ptr()
            extents.append((begin, begin + tensor.nbytes, name))
    furthest = 0
    for begin, end, _ in sorted(extents):
        if begin < furthest:
            break
        furthest = max(furthest, end)
    else:
        return
    for one, (begin, end, name) in enumerate(extents):
        for other_begin, other_end, other in extents[one + 1 :]:
            if begin < other_end and other_begin < end and {name, other} & _WRITTEN:
                raise RuntimeError(f"{name} and {other} must not share memory")
