"""The ops in Triton, for GPUs that the compiled CUDA library does not serve."""
