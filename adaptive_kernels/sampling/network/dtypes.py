"""The dtype that a network is fed in, and what torch says where another one was."""

import re
from typing import Any

import torch

from .walk import Look

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What torch says where an input and a weight do not go together.
MISMATCH = re.compile(
    r"same dtype|expected scalar type|scalar types to match|input type|mixed dtype", re.IGNORECASE
)


def network_dtype(model: Any, look: Look | None = None) -> torch.dtype:
    """The dtype that a network is fed in: its own `dtype` if it says one, as diffusers' models do.

    Else that of most of a module's floating-point parameters, by elements, of those dtypes that a
    network can be fed in; float32 for a function. An attribute that no parameter bears out is what
    the module was made with, before it was converted.

    look: at the module; None looks at it anew.

    Raises: TypeError where all parameters are of another floating-point dtype.
    """
    is_module = isinstance(model, torch.nn.Module)
    elements = (look or Look()).elements(model) if is_module else {}
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
