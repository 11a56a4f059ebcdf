"""Samples per second: the engine against plain batches, on the shipped model and on a GPU."""
