"""Calling the user's network: conditioning rows, guidance halves, checks of what comes back."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def network_dtype(model: Any) -> torch.dtype:
    """The dtype of a module's floating-point parameters; float32 for anything else."""
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return torch.float32


class NetworkCall:
    """The network over all rows or some, unconditional half first where there is guidance.

    Args:
        model: ``model(model_input, timestep, **conditioning)``; gets [rows, ...], returns a tensor
            of the same shape, or a tuple or an object with ``.sample`` that holds one.
        shape: (B, ...) of the latents. guided: whether rows are doubled.
        conditioning, unconditional: mappings of keyword arguments, pytrees whose tensors have
            shape [B, ...]; other leaves are passed on as they are.
        device: where the conditioning must be.

    Raises: ValueError, TypeError naming the argument.
    """

    def __init__(
        self,
        model: Callable,
        shape: tuple[int, ...],
        guided: bool,
        conditioning: Mapping | None,
        unconditional: Mapping | None,
        gather: bool,
        device: torch.device,
    ):
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        self.model, self.shape, self.guided = model, tuple(shape), guided
        batch = shape[0]
        empty: dict = {}
        halves = {"conditioning": empty if conditioning is None else conditioning}
        if guided:
            if unconditional is None and (conditioning is not None or gather):
                raise ValueError(
                    "unconditional must be given with guidance_scale (or gather=False for a model "
                    "that knows its 2B rows), got None"
                )
            halves = {"unconditional": empty if unconditional is None else unconditional, **halves}
        elif unconditional is not None:
            raise ValueError("unconditional needs a guidance_scale other than None and 1.0")
        trees = [_checked(name, tree, batch, device) for name, tree in halves.items()]
        if len({spec for _, spec in trees}) > 1:
            raise ValueError(
                "unconditional must have the structure of conditioning "
                f"({trees[1][1]}), got {trees[0][1]}"
            )
        self.halves = [leaves for leaves, _ in trees]
        self.spec = trees[-1][1]
        self._all = self._keywords(None)

    def _keywords(self, rows: Tensor | None) -> dict:
        """The keyword arguments of the samples `rows` (None: all), halves stacked."""

        def join(parts):
            if not isinstance(parts[-1], Tensor):
                return parts[-1]
            parts = [part if rows is None else part[rows] for part in parts]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        return pytree.tree_unflatten(
            [join(parts) for parts in zip(*self.halves, strict=True)], self.spec
        )

    def __call__(self, model_input: Tensor, timestep: Tensor, rows: Tensor | None) -> Tensor:
        """The model output [rows or 2 rows, N] of the samples `rows` (None: all).

        Args:
            model_input: [B or 2B, N]. timestep: [B or 2B]. rows: [b] int64 or None.
        """
        keywords = self._all
        if rows is not None:
            at = torch.cat([rows, rows + self.shape[0]]) if self.guided else rows
            model_input, timestep = model_input[at], timestep[at]
            keywords = self._keywords(rows)
        model_input = model_input.view(-1, *self.shape[1:])
        output = _tensor_of(self.model(model_input, timestep, **keywords))
        if output.data_ptr() == model_input.data_ptr():
            output = output.clone()  # a network that returns its input: the op writes there
        if output.shape != model_input.shape:
            raise ValueError(
                f"the model must return the shape of its input {tuple(model_input.shape)}, "
                f"got {tuple(output.shape)}"
            )
        if output.device != model_input.device:
            raise ValueError(
                f"the model must return a tensor on {model_input.device}, got {output.device}"
            )
        if not output.is_floating_point():
            raise TypeError(f"the model must return floating-point numbers, got {output.dtype}")
        if output.dtype not in DTYPES:
            output = output.float()
        return output.reshape(output.shape[0], -1).contiguous()


def _tensor_of(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        if hasattr(output, "sample") and isinstance(output.sample, Tensor):
            return output.sample
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            return output[0]
        raise TypeError(
            "the model must return a tensor, a tuple that begins with one or an object with "
            f".sample, got {type(output).__name__}"
        )
    return output


def _checked(name: str, tree: Any, batch: int, device: torch.device):
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"{name} must be a mapping of the model's keyword arguments, got {type(tree).__name__}"
        )
    leaves, spec = pytree.tree_flatten(dict(tree))
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(dict(tree))[0]]
    for path, leaf in zip(paths, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.dim() == 0 or leaf.shape[0] != batch:
            raise ValueError(
                f"{name}{path} must have one row per sample, first dimension {batch}, "
                f"got shape {tuple(leaf.shape)}"
            )
        if leaf.device != device:
            raise ValueError(f"{name}{path} must be on {device} as the noise is, got {leaf.device}")
    return leaves, spec
