"""Configs as JSON files."""

import dataclasses
import json
import numbers
import os
from pathlib import Path

from ...files import write_json
from ...version import __version__
from ..config import AdaptiveConfig
from ..criteria import AUTO
from ..origin import Origin
from ..plan import Plan

__all__ = ["load_config", "presets", "save_config"]

FOLDER = Path(__file__).parent / "configs"
FORMAT = 1


def plan_to_json(plan: Plan) -> dict:
    """A plan as JSON values."""
    return {
        "solver": plan.solver,
        "timesteps": list(plan.timesteps),
        "refresh": [i for i, called in enumerate(plan.refresh) if called],
        "weights": [list(w) for w in plan.weights],
        "updates": [list(u) for u in plan.updates],
    }


def plan_from_json(value: dict) -> Plan:
    """The plan of `plan_to_json`.

    Raises: KeyError, TypeError, ValueError where it is none.
    """
    steps, called = len(value["timesteps"]), value["refresh"]
    if not isinstance(called, list) or not all(type(i) is int and 0 <= i < steps for i in called):
        raise ValueError(f"plan.refresh must be steps from 0 to {steps - 1}, got {called!r}")
    return Plan(
        value["solver"],
        value["timesteps"],
        [i in called for i in range(steps)],
        value["weights"],
        value.get("updates", []),
    )


def save_config(config: AdaptiveConfig, path: str | os.PathLike) -> None:
    """Write a config to a JSON file, the old file replaced when the new one is complete.

    Raises: TypeError for something else than a config; OSError where the file cannot be written.
    """
    if not isinstance(config, AdaptiveConfig):
        raise TypeError(f"config must be an AdaptiveConfig, got {type(config).__name__}")
    full = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    full = {
        # NumPy's integers are none of JSON's.
        name: int(v) if isinstance(v, numbers.Integral) and not isinstance(v, bool) else v
        for name, v in full.items()
    }
    if isinstance(config.threshold, numbers.Real):
        full["threshold"] = repr(float(config.threshold))  # JSON knows no infinity
    if config.plan is not None:
        full["plan"] = plan_to_json(config.plan)
    if config.origin is not None:
        full["origin"] = dataclasses.asdict(config.origin)
    write_json(Path(path), {"adaptive_kernels": __version__, "format": FORMAT, "config": full})


def load_config(path: str | os.PathLike) -> AdaptiveConfig:
    """Read a config from a JSON file, or the preset of that name.

    Raises: FileNotFoundError with the presets there are; ValueError for a file that is no config;
        TypeError for what is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or a path, got {type(path).__name__}")
    file = Path(path)
    if not file.is_file() and file.name == str(path):
        file = FOLDER / f"{path}.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"path must be a JSON file or one of the presets {', '.join(presets()) or '(none)'}, "
            f"got {str(path)!r}"
        )
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r} is not {FORMAT}")
        config = dict(value["config"])
        if config.get("threshold") not in (None, AUTO):
            config["threshold"] = float(config["threshold"])
        if config.get("plan") is not None:
            config["plan"] = plan_from_json(config["plan"])
        if config.get("origin") is not None:
            config["origin"] = Origin(**config["origin"])
        return AdaptiveConfig(**config)
    except KeyError as error:
        raise ValueError(
            f"path must be a saved AdaptiveConfig, got {file} without {error}"
        ) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"path must be a saved AdaptiveConfig, got {file}: {error}") from error


def presets() -> list[str]:
    """Names of the configs shipped with the package, for `load_config`."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))
