"""Calling the user's network: conditioning rows, guidance halves, checks of what comes back."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def network_dtype(model: Any) -> torch.dtype:
    """The first dtype of a module's parameters that a network can be fed in; else float32.

    Raises: TypeError where all of them are of another floating-point dtype.
    """
    floating = None
    for parameter in model.parameters() if isinstance(model, torch.nn.Module) else ():
        if parameter.dtype in DTYPES:
            return parameter.dtype
        floating = floating or (parameter.dtype if parameter.dtype.is_floating_point else None)
    if floating is not None:
        raise TypeError(
            "model must take float32, float16 or bfloat16; its parameters are "
            f"{str(floating).removeprefix('torch.')}: convert it, or name its input with dtype="
        )
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
        if guided and unconditional is None and (conditioning is not None or gather):
            raise ValueError(
                "unconditional must be given with guidance_scale (or gather=False for a model "
                "that knows its 2B rows), got None"
            )
        if unconditional is not None and not guided:
            raise ValueError("unconditional needs a guidance_scale, got guidance_scale=None")
        trees = {"conditioning": conditioning}
        if guided:
            trees = {"unconditional": unconditional, **trees}
        leaves = {n: _leaves(n, tree, shape[0], device) for n, tree in trees.items()}
        if guided:
            _alike(leaves["unconditional"], leaves["conditioning"])
        paths = list(leaves["conditioning"])
        self.halves = [[half[path] for path in paths] for half in leaves.values()]
        self.spec = pytree.tree_structure(_keywords_of(conditioning))
        self._all = self._keywords(None)

    def _keywords(self, samples: Tensor | None) -> dict:
        """The keyword arguments of `samples` (None: all), halves stacked."""

        def join(parts):
            if not isinstance(parts[-1], Tensor):
                return parts[-1]
            parts = [part if samples is None else part[samples] for part in parts]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        return pytree.tree_unflatten(
            [join(parts) for parts in zip(*self.halves, strict=True)], self.spec
        )

    def __call__(self, model_input: Tensor, timestep: Tensor, samples: Tensor | None) -> Tensor:
        """The model output [rows or 2 rows, N] of `samples` (None: all).

        Args:
            model_input: [B or 2B, N]. timestep: [B or 2B]. samples: [b] int64 or None.
        """
        keywords = self._all
        if samples is not None:
            indices = torch.cat([samples, samples + self.shape[0]]) if self.guided else samples
            model_input, timestep = model_input[indices], timestep[indices]
            keywords = self._keywords(samples)
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

    def fixed(self) -> "NetworkCall":
        """The same call of all rows, with conditioning in buffers of its own."""
        twin = copy.copy(self)
        twin._all = pytree.tree_map_only(Tensor, Tensor.clone, self._all)
        twin.halves = []
        return twin

    def load(self, other: "NetworkCall") -> None:
        """Takes the conditioning of a call of the same signature into these buffers."""
        for buffer, value in zip(self.leaves(), other.leaves(), strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(value)

    def leaves(self) -> list:
        """The tensors and plain values that every row is called with, of both halves."""
        return pytree.tree_leaves(self._all)

    def bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves() if isinstance(leaf, Tensor))


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


def _keywords_of(tree: Any) -> dict:
    return {} if tree is None else dict(tree)


def _leaves(name: str, tree: Any, batch: int, device: torch.device) -> dict[str, Any]:
    """{path: leaf} of one half, every tensor checked to have a row per sample."""
    if tree is not None and not isinstance(tree, Mapping):
        raise TypeError(
            f"{name} must be a mapping of the model's keyword arguments, got {type(tree).__name__}"
        )
    flat = pytree.tree_flatten_with_path(_keywords_of(tree))[0]
    leaves = {pytree.keystr(path): leaf for path, leaf in flat}
    for path, leaf in leaves.items():
        if not isinstance(leaf, Tensor):
            continue
        if leaf.dim() == 0 or leaf.shape[0] != batch:
            raise ValueError(
                f"{name}{path} must have one row per sample, first dimension {batch}, "
                f"got shape {tuple(leaf.shape)}"
            )
        if leaf.device != device:
            raise ValueError(f"{name}{path} must be on {device} as the noise is, got {leaf.device}")
    return leaves


def _alike(unconditional: dict[str, Any], conditioning: dict[str, Any]) -> None:
    """Raises unless the halves can be stacked: the same paths, shapes and plain values."""
    for path in {**conditioning, **unconditional}:
        for name, half in (("unconditional", unconditional), ("conditioning", conditioning)):
            if path not in half:
                raise ValueError(
                    f"unconditional and conditioning must name the same arguments; "
                    f"{name} has no {path}"
                )
        a, b = unconditional[path], conditioning[path]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(
                    f"unconditional{path} must have the shape and dtype of conditioning{path}, "
                    f"{tuple(b.shape)} {b.dtype}, got {tuple(a.shape)} {a.dtype}"
                )
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
            raise ValueError(
                f"unconditional{path} must equal conditioning{path} where one of them is no "
                f"tensor, got {_kind(a)} and {_kind(b)}"
            )


def _kind(leaf: Any) -> str:
    return f"a tensor {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
