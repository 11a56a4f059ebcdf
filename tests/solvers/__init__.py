"""Solver tables."""
