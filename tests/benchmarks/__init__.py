"""The benchmarks and the laboratory."""
