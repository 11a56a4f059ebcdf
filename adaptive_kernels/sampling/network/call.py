"""Calling the user's network: conditioning rows, guidance halves, checks of what comes back."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .conditioning import Tree, check_alike, tree_of
from .denoiser import adapted, tensor_of
from .dtypes import DTYPES, MISMATCH
from .rows import Conditioned

GUIDANCE_CALLS = ("batched", "separate")


class NetworkCall:
    """The network over all rows or some, unconditional half first where there is guidance.

    Args:
        model: ``model(model_input, timestep, **conditioning)``; gets [rows, ...], returns a tensor
            of the same shape, or a tuple or an object with ``.sample`` that holds one. What
            diffusers' transformers want otherwise is seen to (`denoiser`).
        shape: (B, ...) of the latents. guided: whether rows are doubled.
        conditioning, unconditional: mappings of keyword arguments, trees (`tree_of`) whose tensors
            have shape [B, ...], or [1, ...] for all; other leaves are passed on as they are.
        device: where the conditioning must be.
        guidance_calls: "batched", one call of 2B rows, or "separate", two of B, whose conditioning
            need not stack.

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
        guidance_calls: str = "batched",
    ):
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        self.model, self.shape, self.guided = model, tuple(shape), guided
        self._network = adapted(model)
        separate = guided and guidance_calls == "separate"
        if guided and unconditional is None and (conditioning is not None or gather or separate):
            raise ValueError(
                "unconditional must be given with guidance_scale (or gather=False for a model "
                "that knows its 2B rows), got None"
            )
        if unconditional is not None and not guided:
            raise ValueError("unconditional needs a guidance_scale, got guidance_scale=None")
        trees = {"conditioning": conditioning}
        if guided:
            trees = {"unconditional": unconditional, **trees}
        halves = [tree_of(n, tree, shape[0], device) for n, tree in trees.items()]
        if guided and not separate:
            _check_stacks(*halves)
        together = [[half] for half in halves] if separate else [halves]
        self._calls = [Conditioned(trees) for trees in together]
        self.structure = [call.structure for call in self._calls]

    def __call__(self, model_input: Tensor, timestep: Tensor, samples: Tensor | None) -> Tensor:
        """The model output [rows or 2 rows, N] of `samples` (None: all).

        Args:
            model_input: [B or 2B, N]. timestep: [B or 2B]. samples: [b] int64 or None.
        """
        outputs = []
        for number, call in enumerate(self._calls):
            x, t = model_input, timestep
            if len(self._calls) > 1:
                x, t = (value.chunk(len(self._calls))[number] for value in (x, t))
            if samples is not None:
                indices = torch.cat([samples + k * self.shape[0] for k in range(call.halves)])
                x, t = x[indices], t[indices]
            x = x.view(-1, *self.shape[1:])
            outputs.append(called(self._network, x, t, call.keywords(samples)))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def fixed(self) -> "NetworkCall":
        """The same call of all rows, with conditioning in buffers of its own."""
        twin = copy.copy(self)
        twin._calls = [call.fixed() for call in self._calls]
        return twin

    def load(self, other: "NetworkCall") -> None:
        """Takes the conditioning of a call of the same signature into these buffers."""
        for own, given in zip(self._calls, other._calls, strict=True):
            given.write(own.leaves)

    def conditions(self) -> list:
        """What the rows are called with: plain values, and of tensors what a buffer must be."""
        return [leaf for call in self._calls for leaf in call.conditions()]

    def bytes(self) -> int:
        leaves = [leaf for call in self._calls for leaf in call.leaves]
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def _check_stacks(unconditional: Tree, conditioning: Tree) -> None:
    try:
        check_alike(unconditional, conditioning)
    except ValueError as error:
        raise ValueError(
            f"{error}; guidance_calls='separate' calls the model once for each half"
        ) from None


def called(
    model: Callable, model_input: Tensor, timestep: Tensor, keywords: Mapping[str, Any]
) -> Tensor:
    """What a network returns for rows, [rows, N] in one of DTYPES, contiguous and no alias.

    Args:
        model_input: [rows, ...]. timestep: [rows]. keywords: what else the model takes.

    Raises: TypeError, ValueError where it returns anything else; what the model raises.
    """
    try:
        output = tensor_of(model(model_input, timestep, **keywords))
    except RuntimeError as error:
        # Its own kinds of error say what they are.
        if type(error) is not RuntimeError or not MISMATCH.search(str(error)):
            raise
        dtype = str(model_input.dtype).removeprefix("torch.")
        raise RuntimeError(
            f"the model fails on an input of {dtype}: {error}; name the dtype it takes with "
            "dtype=, or convert the conditioning"
        ) from error
    if output.data_ptr() == model_input.data_ptr():
        output = output.clone()  # a network that returns its input: the op writes there
    if output.shape != model_input.shape:
        raise ValueError(
            f"the model must return the shape of its input {tuple(model_input.shape)}, "
            f"got {tuple(output.shape)}{_surplus(output, model_input)}"
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


def _surplus(output: Tensor, model_input: Tensor) -> str:
    """A word on channels that a model predicts beside the latents' own, such as a variance."""
    shape, own = list(output.shape), list(model_input.shape)
    if len(shape) < 2 or len(shape) != len(own) or shape[1] <= own[1]:
        return ""
    alike = [shape[0], *shape[2:]] == [own[0], *own[2:]]
    if not alike:
        return ""
    return f": give the latents' channels alone, output[:, :{own[1]}], as denoiser(model) does"
