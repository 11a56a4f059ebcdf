"""Configs that `calibrate` found on known models, one JSON file each, for `load_config`."""
