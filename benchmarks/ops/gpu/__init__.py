"""`step` and `advance` on a GPU, by CUDA events and graph replays."""
