"""A scheduler's settings by name, however it keeps them."""

from collections.abc import Mapping
from typing import Any

from .errors import ProbeError


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """Its config, as diffusers' mapping or as an object with attributes; empty if it has none."""
    config = getattr(scheduler, "config", None)
    return config if isinstance(config, Mapping) else getattr(config, "__dict__", {})


def number_of(scheduler: Any, name: str) -> float:
    """An attribute that is 1 where there is none; raise ProbeError where it is no number."""
    value = None
    try:
        value = getattr(scheduler, name, 1)
        return float(value)
    except Exception as error:
        said = f"got {value!r}" if value is not None else f"{type(error).__name__}: {error}"
        raise ProbeError(f"its {name} must be a number, {said}") from error
