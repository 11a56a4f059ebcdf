"""How the loop runs: plain, in groups launched ahead, or as one CUDA graph; and which of them."""

from .capability import EXECUTORS
from .eager import Job
from .select import Executors
from .watch import CaptureError

__all__ = ["EXECUTORS", "CaptureError", "Executors", "Job"]
