"""The tensors that the ops work in, allocated by the table of their fields."""

import dataclasses

import torch
from torch import Tensor

from ..ops import fields
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
