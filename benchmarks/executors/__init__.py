"""Whole samplings by every executor."""
