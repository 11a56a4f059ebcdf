"""`step` on the CPU, by pytest-benchmark."""
