"""Criteria, fills, plans and presets."""
