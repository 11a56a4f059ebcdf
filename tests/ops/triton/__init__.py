"""The ops in Triton."""
