"""Configs as JSON: saved, loaded, and those that are shipped."""

from .store import load_config, plan_from_json, plan_to_json, presets, save_config

__all__ = ["load_config", "plan_from_json", "plan_to_json", "presets", "save_config"]
