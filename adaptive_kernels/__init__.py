"""Adaptive diffusion sampling: the network is called only where the latents ask for it."""

from .calibration import calibrate
from .config import AdaptiveConfig
from .plan import Plan
from .presets import load_config, presets, save_config
from .result import SamplingResult, StepInfo
from .sampler import AdaptiveSampler
from .schedule import SolverTable, UnsupportedSchedulerError
from .version import __version__
from .watch import CaptureError

__all__ = [
    "AdaptiveConfig",
    "AdaptiveSampler",
    "CaptureError",
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
