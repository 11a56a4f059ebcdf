"""A state's tensors by the table of their fields: allocated, copied, and what fits them."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..ops import fields
from ..rules.tables import FillTables
from .start import Inputs, Start

# What the ops work in: those of `ops.fields` that are neither tables nor inputs.
Buffers = dataclasses.make_dataclass(
    "Buffers",
    [(field.name, Tensor | None) for field in fields.FIELDS if field.part == "buffers"],
    namespace={"__module__": __name__},
    frozen=True,
)
# What `State` writes where samples stand at their first step.
AT_FIRST = {"progress", "measures", "refreshed", "score", "model_input", "timestep"}


def inputs_like(start: Start) -> Inputs:
    """Inputs of the shapes of a start's, contiguous, with nothing in them yet."""

    def like(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)

    return Inputs(**{name: like(value) for name, value in vars(start.inputs).items()})


def allocate(start: Start) -> Buffers:
    """Buffers for a start: zeros, but for those that a first step is written into at once."""
    tables, (batch, elements) = start.tables, start.latents.shape
    workspace = fields.workspace_shape(batch, elements)
    sizes = {
        "R": 3 * tables.rule.stages + 1,
        "K - 1": tables.rows.shape[1] - fields.SCALARS - 1,
        **{"T": len(tables.rows), "B": batch, "N": elements, "M": start.rows, "P": workspace[1]},
    }
    dtypes = {
        **{"model_input": start.dtype, "model_output": start.dtype},
        "timestep": tables.timestep.dtype,
    }
    without = {"workspace"} if start.latents.device.type == "cpu" else set()
    if tables.weights is None:
        without.add("outputs")
    held = {}
    for field in fields.FIELDS:
        if field.part == "buffers":
            shape = [sizes.get(size, size) for size in field.shape]
            dtype = dtypes.get(field.name, field.dtypes[0])
            held[field.name] = None
            if field.name not in without:
                make = torch.empty if field.name in AT_FIRST else torch.zeros
                held[field.name] = make(shape, dtype=dtype, device=start.latents.device)
    return Buffers(**held)


def copy_of(values: Any) -> Any:
    """Inputs or buffers of the same values, in memory of their own."""
    tensors = vars(values).items()
    copies = {name: None if v is None else v.detach().clone() for name, v in tensors}
    return type(values)(**copies)


def without_graph(buffers: Buffers) -> Buffers:
    """The same buffers, cut from the autograd graph that some of them may carry."""
    held = {n: v.detach() for n, v in vars(buffers).items() if v is not None and v.requires_grad}
    return dataclasses.replace(buffers, **held) if held else buffers


def expect_fit(
    start: Start, samples: int, tables: FillTables, inputs: Inputs, buffers: Buffers
) -> None:
    """Raises TypeError or ValueError unless these can take in a start of so many samples."""
    if not isinstance(start, Start):
        raise TypeError(f"start must be a Start, got {type(start).__name__}")
    latents, network = buffers.latents, buffers.model_input
    _, batch, elements = latents.shape
    for name, own, came in (
        ("shape of latents", (samples, elements), tuple(start.latents.shape)),
        ("device", latents.device, start.latents.device),
        ("rows of the network", network.shape[0], batch * (2 if start.guided else 1)),
        ("dtype", network.dtype, start.dtype),
    ):
        if own != came:
            raise ValueError(f"start must have the state's {name} ({own}), got {came}")
    sizes = {"T": tables.rows.shape[0], "B": samples, "N": elements}
    for name, value in vars(start.inputs).items():
        field = fields.FIELD[name]
        shape = tuple(sizes[size] for size in field.shape)
        wanted = None if getattr(inputs, name) is None else shape
        got = None if value is None else tuple(value.shape)
        if wanted != got:
            raise ValueError(f"{name} must have shape {wanted}, got {got}")
        if value is not None and value.dtype not in field.dtypes:
            expected, came = map(fields.dtype_names, (field.dtypes, (value.dtype,)))
            raise ValueError(f"{name} must be {expected}, got {came}")
    if start.tables is not tables:
        raise ValueError("start must have the state's own tables (State.tables), got others")
