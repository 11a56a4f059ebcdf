"""Calling the user's network: conditioning rows, guidance halves, checks of what comes back."""

import copy
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from .conditioning import check_alike, tree_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What torch says where an input and a weight do not go together.
_DTYPE = re.compile(
    r"same dtype|expected scalar type|scalar types to match|input type|mixed dtype", re.IGNORECASE
)


def network_dtype(model: Any) -> torch.dtype:
    """The dtype that a network is fed in: its own `dtype` if it says one, as diffusers' models do.

    Else that of most of a module's floating-point parameters, by elements, of those dtypes that a
    network can be fed in; float32 for a function. An attribute that no parameter bears out is what
    the module was made with, before it was converted.

    Raises: TypeError where all parameters are of another floating-point dtype.
    """
    elements: Counter[torch.dtype] = Counter()
    for parameter in model.parameters() if isinstance(model, torch.nn.Module) else ():
        if parameter.is_floating_point() and not is_lazy(parameter):
            elements[parameter.dtype] += parameter.numel()
    said = _said_dtype(model)
    if said in DTYPES and (said in elements or not elements or _computes_dtype(model)):
        return said
    usable = [dtype for dtype in DTYPES if dtype in elements]
    if usable:
        return max(usable, key=elements.__getitem__)
    if elements:
        raise TypeError(
            "model must take float32, float16 or bfloat16; its parameters are "
            f"{str(next(iter(elements))).removeprefix('torch.')}: convert it, or name its input "
            "with dtype="
        )
    return torch.float32


def _said_dtype(model: Any) -> torch.dtype | None:
    try:
        said = getattr(model, "dtype", None)
    except Exception:  # a property that needs parameters
        return None
    return said if isinstance(said, torch.dtype) else None


def _computes_dtype(model: Any) -> bool:
    """Whether its dtype is worked out when asked for; a compiled module hands it on."""
    kind = type(getattr(model, "_orig_mod", model))
    return isinstance(getattr(kind, "dtype", None), property)


class NetworkCall:
    """The network over all rows or some, unconditional half first where there is guidance.

    Args:
        model: ``model(model_input, timestep, **conditioning)``; gets [rows, ...], returns a tensor
            of the same shape, or a tuple or an object with ``.sample`` that holds one.
        shape: (B, ...) of the latents. guided: whether rows are doubled.
        conditioning, unconditional: mappings of keyword arguments, trees (`tree_of`) whose tensors
            have shape [B, ...]; other leaves are passed on as they are.
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
        halves = {n: tree_of(n, tree, shape[0], device) for n, tree in trees.items()}
        if guided:
            check_alike(halves["unconditional"], halves["conditioning"])
        self._tree = halves["conditioning"]
        self.structure = self._tree.structure
        paths = list(self._tree.leaves)
        self._halves = [[half.leaves[path] for path in paths] for half in halves.values()]
        self._leaves = self._join(None)
        self._all = self._tree.rebuild(iter(self._leaves))

    def _join(self, samples: Tensor | None) -> list:
        """The leaves of `samples` (None: all), halves stacked."""

        def join(parts):
            if not isinstance(parts[-1], Tensor):
                return parts[-1]
            parts = [part if samples is None else part[samples] for part in parts]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        return [join(parts) for parts in zip(*self._halves, strict=True)]

    def __call__(self, model_input: Tensor, timestep: Tensor, samples: Tensor | None) -> Tensor:
        """The model output [rows or 2 rows, N] of `samples` (None: all).

        Args:
            model_input: [B or 2B, N]. timestep: [B or 2B]. samples: [b] int64 or None.
        """
        keywords = self._all
        if samples is not None:
            indices = torch.cat([samples, samples + self.shape[0]]) if self.guided else samples
            model_input, timestep = model_input[indices], timestep[indices]
            keywords = self._tree.rebuild(iter(self._join(samples)))
        return called(self.model, model_input.view(-1, *self.shape[1:]), timestep, keywords)

    def fixed(self) -> "NetworkCall":
        """The same call of all rows, with conditioning in buffers of its own."""
        twin = copy.copy(self)
        twin._halves = []
        twin._leaves = [v.clone() if isinstance(v, Tensor) else v for v in self._leaves]
        twin._all = self._tree.rebuild(iter(twin._leaves))
        return twin

    def load(self, other: "NetworkCall") -> None:
        """Takes the conditioning of a call of the same signature into these buffers."""
        for buffer, value in zip(self.leaves(), other.leaves(), strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(value)

    def leaves(self) -> list:
        """The tensors and plain values that every row is called with, of both halves."""
        return self._leaves

    def bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves() if isinstance(leaf, Tensor))


def called(
    model: Callable, model_input: Tensor, timestep: Tensor, keywords: Mapping[str, Any]
) -> Tensor:
    """What a network returns for rows, [rows, N] in one of DTYPES, contiguous and no alias.

    Args:
        model_input: [rows, ...]. timestep: [rows]. keywords: what else the model takes.

    Raises: TypeError, ValueError where it returns anything else; what the model raises.
    """
    try:
        output = _tensor_of(model(model_input, timestep, **keywords))
    except RuntimeError as error:
        # Its own kinds of error say what they are.
        if type(error) is not RuntimeError or not _DTYPE.search(str(error)):
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


def _surplus(output: Tensor, model_input: Tensor) -> str:
    """A word on channels that a model predicts beside the latents' own, such as a variance."""
    shape, own = list(output.shape), list(model_input.shape)
    if len(shape) < 2 or len(shape) != len(own) or shape[1] <= own[1]:
        return ""
    alike = [shape[0], *shape[2:]] == [own[0], *own[2:]]
    return f": give the latents' channels alone, output[:, :{own[1]}]" if alike else ""
