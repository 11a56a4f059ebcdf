"""The torch ops `step` and `advance`: what they are (schema), and what serves them (dispatch)."""

from .dispatch import implementation
from .fields import Arguments, workspace_shape
from .report import info
from .schema import advance, step

__all__ = ["Arguments", "advance", "implementation", "info", "step", "workspace_shape"]
