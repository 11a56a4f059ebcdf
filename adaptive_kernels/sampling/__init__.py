"""One sampling: its buffers, what a user gives to it, the calls of the network, the result."""

from .result import SamplingResult, StepInfo
from .state import State

__all__ = ["SamplingResult", "State", "StepInfo"]
