"""Latents that a user puts in the place of a state's, between two network calls."""

from typing import Any

import torch
from torch import Tensor

from .inputs import expect
from .state import State

INPUT_SCALE = 4  # c_{i+1} in the rows of `ops.fields`


def edit(state: State, latents: Any, noise: Tensor) -> None:
    """Takes latents in as those of every sample's own step, and as what the network reads next.

    What the criterion measured on the way to them stays; its next differences are from them.

    Args:
        latents: what a callback returned, [B, ...] floating as the noise.

    Raises: TypeError, ValueError; then the state is as it was.
    """
    if not isinstance(latents, Tensor):
        raise TypeError(
            "callback must return None or latents [B, ...] to go on with, got "
            f"{type(latents).__name__}"
        )
    expect("what callback returns", latents, noise.shape, noise.device)
    x = latents.reshape(state.latents.shape[1:]).float()
    samples, index = torch.arange(len(x), device=x.device), state.index.long()
    state.latents[index % len(state.latents), samples] = x
    # Row i holds the scale of what is fed after it: of the last one there is none.
    scale = state.rows[(index - 1).clamp(min=0), INPUT_SCALE]
    fed = (scale[:, None] * x).to(state.model_input.dtype)
    waits = (index > 0) & (index < len(state.rows))
    halves = len(state.model_input) // max(len(x), 1)
    held = state.model_input.view(halves, *x.shape)
    held.copy_(torch.where(waits[:, None], fed, held))
