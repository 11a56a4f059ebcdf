"""`step` and `advance`: times and bytes."""
