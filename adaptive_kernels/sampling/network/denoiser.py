"""Networks that are called otherwise than ``model(model_input, timestep, **conditioning)``.

diffusers' transformers order their arguments in ways of their own, some take the timestep in other
units than the scheduler's, and some predict a variance beside.
"""

import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .dtypes import network_dtype
from .signature import by_name, inner, parameters, places, predicts_variance, scale_of


class Denoiser(torch.nn.Module):
    """A network as the sampler calls it: ``denoiser(model_input, timestep, **conditioning)``.

    Made by `denoiser`. Its parameters and its dtype are the network's.
    """

    def __init__(
        self, model: torch.nn.Module, timestep_scale: float, variance: bool, shared: dict[str, Any]
    ):
        super().__init__()
        self.model, self.timestep_scale, self.variance = model, timestep_scale, variance
        self._input, self._time = places(parameters(inner(model)))
        leaves, self._structure = pytree.tree_flatten(shared)
        self._plain = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        # Buffers, so that they go where the module goes and a capture sees where they are.
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.register_buffer(f"shared_{place}", leaf, persistent=False)
        # Not by train(), which would set the network's own parts to it.
        self.training = model.training

    @property
    def dtype(self) -> torch.dtype:
        """What the network is fed in."""
        return network_dtype(self.model)

    def shared(self) -> dict[str, Any]:
        """The keyword arguments that are the same for all rows."""
        leaves = [getattr(self, f"shared_{k}", plain) for k, plain in enumerate(self._plain)]
        return pytree.tree_unflatten(leaves, self._structure)

    def forward(self, model_input: Tensor, timestep: Tensor, **conditioning: Any) -> Tensor:
        """The network's prediction for rows.

        Args:
            model_input: [rows, C, ...]. timestep: [rows], in the scheduler's units.
            conditioning: the network's further arguments, one row each per row of the input.

        Returns: [rows, C, ...]; of a network that predicts a variance beside, the first C channels.
        """
        keywords = {**self.shared(), **conditioning} if self._plain else conditioning
        if self.timestep_scale != 1:
            timestep = timestep * self.timestep_scale
        if self._time is None:
            output = self.model(model_input, timestep, **keywords)
        else:
            output = self.model(**{self._input: model_input, self._time: timestep}, **keywords)
        output, shape = tensor_of(output), model_input.shape
        both = output.shape[1:2] == (2 * shape[1],) and output.shape[2:] == shape[2:]
        return output[:, : shape[1]] if both and self.variance else output

    def _apply(self, fn: Callable, recurse: bool = True) -> "Denoiser":
        """Moves and converts; of what is shared the dtype stays, as float32 position tables'."""
        held = {name: value for name, value in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)
        for name, value in held.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


def denoiser(
    model: torch.nn.Module, *, timestep_scale: float | None = None, **shared: Any
) -> Denoiser:
    """A network of diffusers as the samplers call it, whatever the order of its arguments.

        denoiser(x, t, **conditioning) = model(hidden_states=x, timestep=timestep_scale t,
                                               **shared, **conditioning)

    A sampler does it by itself for diffusers' transformers that it knows or whose signature says
    so; this is for what is the same for all samples, and for units that nobody knows.

    Args:
        model: a network of diffusers, a compiled one too, or any module of a model input
            [rows, ...] and a timestep [rows].
        timestep_scale: what the scheduler's timesteps are multiplied by; None takes what the
            network's own pipeline does: 1/1000 for Flux, Qwen-Image, Chroma and others, the
            `timestep_scale` of Sana's configuration, 1 elsewhere.
        shared: keyword arguments of the network that have no row per sample: Flux's ``img_ids`` and
            ``txt_ids``, CogVideoX's ``image_rotary_emb``, an ``attention_mask`` for all.

    Returns: a module; its dtype is the network's, and of a network that predicts a variance beside
        (PixArt) it gives the first half of the channels.

    Raises: TypeError, ValueError naming the argument; ValueError for a network whose pipeline does
        more than scale its timestep.
    Source: diffusers 0.42.1, `pipelines/`.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    network = inner(model)
    if timestep_scale is None:
        timestep_scale = scale_of(network)
    elif isinstance(timestep_scale, bool) or not isinstance(timestep_scale, numbers.Real):
        raise TypeError(f"timestep_scale must be a number, got {timestep_scale!r}")
    elif not 0 < timestep_scale < float("inf"):
        raise ValueError(f"timestep_scale must be positive and finite, got {timestep_scale}")
    found = parameters(network)
    own = {name for name in (*places(found), *(p.name for p in found[:1])) if name}
    anything = not found or any(p.kind is p.VAR_KEYWORD for p in found)
    for name in shared:
        kind = type(network).__name__
        if name in own:
            raise TypeError(f"{name} is what a sampler gives {kind} at each call, not shared")
        if not anything and name not in [p.name for p in found]:
            raise TypeError(f"{kind} takes no argument {name!r}")
    return Denoiser(model, float(timestep_scale), True, shared)


def adapted(model: Callable) -> Callable:
    """The model itself, or as a `Denoiser` where its class or its signature asks for one.

    Raises: ValueError for a network whose pipeline does more than scale its timestep; TypeError for
        a pipeline.
    """
    is_module = isinstance(model, torch.nn.Module)
    if not is_module and hasattr(model, "components") and hasattr(model, "scheduler"):
        raise TypeError(
            "model must be the network, such as pipe.unet or pipe.transformer, got the pipeline "
            f"{type(model).__name__}; enable_adaptive(pipe) is for pipelines"
        )
    if isinstance(model, Denoiser) or not is_module:
        return model
    network = inner(model)
    scale, variance = scale_of(network), predicts_variance(network)
    if scale == 1 and not variance and not by_name(network):
        return model
    return Denoiser(model, scale, variance, {})


def tensor_of(output: Any) -> Tensor:
    """The prediction in what a network returned.

    Raises: TypeError where there is none.
    """
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
