"""What a user chooses: a criterion and its fill, a plan, a preset; and the numbers they come to."""

from .config import AdaptiveConfig
from .plan import Plan

__all__ = ["AdaptiveConfig", "Plan"]
