"""The ops in CUDA: emulated, compiled, and on a GPU."""
