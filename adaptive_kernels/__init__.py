"""Adaptive diffusion sampling: the network is called only where the latents ask for it."""

from .config import AdaptiveConfig
from .sampler import AdaptiveSampler, SamplingResult, StepInfo
from .schedule import SolverTable, UnsupportedSchedulerError
from .version import __version__

__all__ = [
    "AdaptiveConfig",
    "AdaptiveSampler",
    "SamplingResult",
    "SolverTable",
    "StepInfo",
    "UnsupportedSchedulerError",
    "__version__",
]
