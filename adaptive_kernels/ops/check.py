"""The arguments of `step` and `advance`, checked for the reference and Triton.

Raises what csrc/op/check.h raises, in its words; text is put together only to be said.
"""

from typing import NamedTuple

from ..rules import criteria
from ..solvers.scheduler import MAX_HISTORY
from .fields import (
    FIELDS,
    PREDICTORS,
    SCALARS,
    SUMS,
    WEIGHTS,
    Arguments,
    dtype_names,
    pieces,
    tensors,
)


class Sizes(NamedTuple):
    """The sizes of a call, named as in `fields`."""

    R: int
    B: int
    N: int
    T: int
    K: int
    M: int
    G: int  # 0 where no weights are given
    Q: int
    P: int


def check(a: Arguments, condition: int | None) -> Sizes:
    """The sizes of a call whose arguments go together.

    Raises: RuntimeError naming the argument.
    """
    if condition is not None:
        raise RuntimeError("condition needs the CUDA library")
    for field, value in zip(FIELDS, a, strict=False):
        if value is None and not field.optional:
            raise RuntimeError(f"{field.name} must be a tensor, got None")
    if reason := _wrong_rule(a) or _wrong_size(a):
        raise RuntimeError(reason)
    sizes = Sizes(
        *a.latents.shape,
        T=len(a.rows),
        K=a.rows.shape[1] - SCALARS,
        M=len(a.model_output),
        G=0 if a.weights is None else a.weights.shape[1],
        Q=0 if a.rule_table is None else a.rule_table.shape[2],
        P=0 if a.workspace is None else a.workspace.shape[1],
    )
    known = sizes._asdict() | {"K - 1": sizes.K - 1, f"{SCALARS} + K": SCALARS + sizes.K}
    for field, tensor in tensors(a):
        shape = tuple(known.get(size, size) for size in field.shape)
        if tensor.dtype not in field.dtypes:
            reason = f"be {dtype_names(field.dtypes)}, got {dtype_names((tensor.dtype,))}"
        elif tensor.shape != shape:
            reason = f"have shape {_text(shape)}, got {_text(tensor.shape)}"
        elif not tensor.is_contiguous():
            reason = f"be contiguous, got strides {_text(tensor.stride())}"
        elif tensor.device != a.latents.device:
            reason = f"be on {a.latents.device} as latents is, got {tensor.device}"
        else:
            continue
        raise RuntimeError(f"{field.name} must {reason}")
    if a.workspace is not None and a.workspace.data_ptr() % 16:
        raise RuntimeError("workspace must begin on a boundary of 16 bytes")
    _check_apart(a)
    return sizes


def _text(values) -> str:
    return f"({', '.join(map(str, values))})"


def _wrong_rule(a: Arguments) -> str | None:
    if not 0 <= a.criterion < len(criteria.CRITERIA):
        return f"criterion must be 0 to {len(criteria.CRITERIA) - 1}, got {a.criterion}"
    criterion = criteria.of(a.criterion)
    for name, lowest, which in (
        ("max_skip", 0, ""),
        ("stages", 1, ""),
        ("warmup", criterion.warmup, " for this criterion"),
    ):
        if (value := getattr(a, name)) < lowest:
            return f"{name} must be at least {lowest}{which}, got {value}"
    if (a.outputs is None) != (a.weights is None):
        return "outputs and weights must be given together"
    if criterion.needs_table and (a.outputs is None or a.rule_table is None):
        return "outputs, weights and rule_table must be given for this criterion"
    if a.outputs is None and a.rule_table is not None:
        return "rule_table must come with outputs and weights"
    return None


def _wrong_size(a: Arguments) -> str | None:
    """What is wrong with the tensors that the shapes of the others follow from."""
    if a.latents.dim() != 3:
        return f"latents must have 3 dimensions [R, B, N], got {a.latents.dim()}"
    if a.rows.dim() != 2 or not len(a.rows) or not 1 <= a.rows.shape[1] - SCALARS <= MAX_HISTORY:
        shape = f"[T, {SCALARS} + K] with T >= 1 and 1 <= K <= {MAX_HISTORY}"
        return f"rows must have shape {shape}, got {_text(a.rows.shape)}"
    if a.model_output.dim() != 2:
        return f"model_output must have 2 dimensions, got {a.model_output.dim()}"
    (R, B, N), M, least = a.latents.shape, len(a.model_output), 3 * a.stages + 1
    if least > R:
        return f"latents must hold at least {least} steps, got {R}"
    if M not in (B, 2 * B):
        return f"model_output must have {B} or {2 * B} rows, got {M}"
    if a.weights is not None and (a.weights.dim() != 4 or not a.weights.shape[1]):
        shape = f"[T, G, G, {WEIGHTS}] with G >= 1"
        return f"weights must have shape {shape}, got {_text(a.weights.shape)}"
    if a.rule_table is not None and (a.rule_table.dim() != 4 or not a.rule_table.shape[2]):
        shape = f"[T, G, Q, {PREDICTORS}] with Q >= 1"
        return f"rule_table must have shape {shape}, got {_text(a.rule_table.shape)}"
    workspace, needed = a.workspace, pieces(N)
    if workspace is not None and (workspace.dim() != 3 or workspace.shape[1] <= needed):
        shape = f"[B, P, {SUMS}] with P > {needed}"
        return f"workspace must have shape {shape}, got {_text(workspace.shape)}"
    return None


def _check_apart(a: Arguments) -> None:
    """A written buffer may share no byte with any other argument."""
    extents = []
    for _, tensor in tensors(a):
        begin = tensor.data_ptr()
        extents.append((begin, begin + tensor.nbytes))
    furthest = 0
    for begin, end in sorted(extents):
        if begin < furthest:
            break
        furthest = max(furthest, end)
    else:
        return
    named = [(field, extent) for (field, _), extent in zip(tensors(a), extents, strict=True)]
    for number, (field, (begin, end)) in enumerate(named):
        for other, (other_begin, other_end) in named[number + 1 :]:
            overlap = begin < other_end and other_begin < end
            if overlap and (field.written or other.written):
                raise RuntimeError(f"{field.name} and {other.name} must not share memory")
