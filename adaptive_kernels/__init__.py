"""Adaptive diffusion sampling: the network is called only where the latents ask for it."""

from .calibration import calibrate
from .config import AdaptiveConfig
from .plan import Plan
from .presets import load_config, presets, save_config
from .sampler import AdaptiveSampler, SamplingResult, StepInfo
from .schedule import SolverTable, UnsupportedSchedulerError
from .version import __version__

__all__ = [
    "AdaptiveConfig",
    "AdaptiveSampler",
    "Plan",
    "SamplingResult",
    "SolverTable",
    "StepInfo",
    "UnsupportedSchedulerError",
    "__version__",
    "calibrate",
    "load_config",
    "presets",
    "save_config",
]
