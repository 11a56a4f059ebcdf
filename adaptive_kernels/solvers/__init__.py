"""Solvers as tables of numbers, read off diffusers schedulers."""

from .levels import NoiseLevels
from .scheduler import UnsupportedSchedulerError
from .table import SolverTable

__all__ = ["NoiseLevels", "SolverTable", "UnsupportedSchedulerError"]
