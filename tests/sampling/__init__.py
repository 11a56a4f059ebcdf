"""Samplings from end to end."""
