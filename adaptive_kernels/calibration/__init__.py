"""Plans and thresholds found on samples of a user's own model."""

from .run import calibrate

__all__ = ["calibrate"]
