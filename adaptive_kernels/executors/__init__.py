"""How the loop runs: plain, in groups launched ahead, or as one CUDA graph; and which of them."""

from .capability import EXECUTORS
from .eager import Job
from .guard import CaptureError
from .select import Executors, Prepared

__all__ = ["EXECUTORS", "CaptureError", "Executors", "Job", "Prepared"]
