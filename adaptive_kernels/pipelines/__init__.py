"""Pipelines of diffusers: adaptive in two lines, and plain again in one."""

from .enable import adaptive, disable_adaptive, enable_adaptive
from .summary import decisions_picture, summary

__all__ = ["adaptive", "decisions_picture", "disable_adaptive", "enable_adaptive", "summary"]
