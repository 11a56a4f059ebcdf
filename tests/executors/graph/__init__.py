"""The loop inside a CUDA graph."""
