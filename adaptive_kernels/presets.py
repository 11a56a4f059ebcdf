"""Configs as JSON: saved, loaded, and those shipped with the package."""

import dataclasses
import json
import os
from pathlib import Path

from .config import AdaptiveConfig
from .plan import Plan
from .version import __version__

__all__ = ["load_config", "presets", "save_config"]

FOLDER = Path(__file__).parent / "presets"
FORMAT = 1


def plan_to_json(plan: Plan) -> dict:
    """A plan as JSON values."""
    return {
        "solver": plan.solver,
        "timesteps": list(plan.timesteps),
        "refresh": [i for i, called in enumerate(plan.refresh) if called],
        "weights": [list(w) for w in plan.weights],
    }


def plan_from_json(value: dict) -> Plan:
    """The plan of `plan_to_json`.

    Raises: KeyError, TypeError, ValueError where it is none.
    """
    called = set(value["refresh"])
    return Plan(
        value["solver"],
        value["timesteps"],
        [i in called for i in range(len(value["timesteps"]))],
        value["weights"],
    )


def save_config(config: AdaptiveConfig, path: str | os.PathLike) -> None:
    """Write a config to a JSON file, the old file replaced when the new one is complete.

    Raises: TypeError for something else than a config; OSError where the file cannot be written.
    """
    if not isinstance(config, AdaptiveConfig):
        raise TypeError(f"config must be an AdaptiveConfig, got {type(config).__name__}")
    full = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if config.threshold is not None:
        full["threshold"] = repr(float(config.threshold))  # JSON knows no infinity
    if config.plan is not None:
        full["plan"] = plan_to_json(config.plan)
    value = {"adaptive_kernels": __version__, "format": FORMAT, "config": full}
    path = Path(path)
    hidden = path.with_name(f".{path.name}.unfinished")
    hidden.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(hidden, path)


def load_config(path: str | os.PathLike) -> AdaptiveConfig:
    """Read a config from a JSON file, or the preset of that name.

    Raises: FileNotFoundError with the presets there are; ValueError for a file that is no config.
    """
    file = Path(path)
    if not file.is_file():
        file = FOLDER / f"{path}.json"
    if os.sep in str(path) or not file.is_file():
        file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"path must be a JSON file or one of the presets {', '.join(presets()) or '(none)'}, "
            f"got {str(path)!r}"
        )
    try:
        value = json.loads(file.read_text())
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']} is not {FORMAT}")
        config = dict(value["config"])
        if config.get("threshold") is not None:
            config["threshold"] = float(config["threshold"])
        if config.get("plan") is not None:
            config["plan"] = plan_from_json(config["plan"])
        return AdaptiveConfig(**config)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path must be a saved AdaptiveConfig, got {file}: {error}") from error


def presets() -> list[str]:
    """Names of the configs shipped with the package, for `load_config`."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))
