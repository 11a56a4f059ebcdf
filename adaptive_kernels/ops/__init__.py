"""The torch ops `step` and `advance`: what they are (schema), and what serves them (dispatch)."""

from .dispatch import implementation
from .report import info
from .schema import advance, step, workspace_shape

__all__ = ["advance", "implementation", "info", "step", "workspace_shape"]
