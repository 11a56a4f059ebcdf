"""Plans and thresholds found on samples of a user's own model."""

from .noise import measure_output_noise
from .run import calibrate

__all__ = ["calibrate", "measure_output_noise"]
