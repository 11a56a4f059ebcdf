"""Adaptive diffusion sampling: the network is called only where the latents ask for it."""

from . import moved
from .calibration import calibrate, measure_output_noise
from .engine import Engine, EngineError, Request, RequestError, Sample
from .executors import CaptureError
from .pipelines import (
    adaptive,
    decisions_picture,
    disable_adaptive,
    enable_adaptive,
    summary,
)
from .rules import AdaptiveConfig, Plan
from .rules.presets import load_config, presets, save_config
from .sampler import AdaptiveSampler
from .sampling import SamplingResult, State, StepInfo
from .sampling.network import denoiser
from .solvers import SolverTable, UnsupportedSchedulerError
from .version import __version__

__all__ = [
    "AdaptiveConfig",
    "AdaptiveSampler",
    "CaptureError",
    "Engine",
    "EngineError",
    "Plan",
    "Request",
    "RequestError",
    "Sample",
    "SamplingResult",
    "SolverTable",
    "State",
    "StepInfo",
    "UnsupportedSchedulerError",
    "__version__",
    "adaptive",
    "calibrate",
    "decisions_picture",
    "denoiser",
    "disable_adaptive",
    "enable_adaptive",
    "load_config",
    "measure_output_noise",
    "presets",
    "save_config",
    "summary",
]


def __dir__() -> list[str]:
    """The public names; rooms and earlier names are importable, and no business of completion."""
    return sorted(__all__)


moved.install()
__getattr__ = moved.attribute
