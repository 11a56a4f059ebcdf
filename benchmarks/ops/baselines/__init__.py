"""The same step or run without this package: eagerly as released, and under torch.compile."""
