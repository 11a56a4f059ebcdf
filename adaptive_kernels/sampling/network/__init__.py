"""The user's network: what it is conditioned on, the dtype it takes, how it is called."""

from .call import GUIDANCE_CALLS, NetworkCall, called
from .denoiser import Denoiser, adapted, denoiser
from .dtypes import DTYPES, network_dtype
from .rows import Rows
from .walk import Look, Walk

__all__ = [
    "DTYPES",
    "GUIDANCE_CALLS",
    "Denoiser",
    "Look",
    "NetworkCall",
    "Rows",
    "Walk",
    "adapted",
    "called",
    "denoiser",
    "network_dtype",
]
