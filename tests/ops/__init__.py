"""The ops, every implementation against `reference`."""
