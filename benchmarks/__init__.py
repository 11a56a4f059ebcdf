"""Benchmarks and the laboratory, in the rooms of the package."""
