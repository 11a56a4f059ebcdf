"""The demo: a small model that is shipped, sampled with and without skipping, and compared."""

from .run import run_demo

__all__ = ["run_demo"]
