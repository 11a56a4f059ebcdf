"""What cannot be a table: the reason by the setting's name, and the way out."""

from typing import Any

import torch

from .reading.config import config_of

_NO_TABLE = {
    "solver_p": "steps with a scheduler of its own; construct it with solver_p=None",
    "scale_factors": "resizes the latents; construct it with scale_factors=None",
}
# Spacings of the noise levels that crowd some of them together.
_SPACINGS = ("use_exponential_sigmas", "use_beta_sigmas", "use_karras_sigmas")


class UnsupportedSchedulerError(ValueError):
    """The scheduler, as configured, is no table; the message names the setting and the way out."""


def check_scheduler(scheduler: Any) -> None:
    """Raise TypeError for what is no scheduler."""
    if not hasattr(scheduler, "set_timesteps") or isinstance(scheduler, type):
        raise TypeError(
            f"scheduler must be a diffusers scheduler object, got {_described(scheduler)}"
        )


def refuse(scheduler: Any) -> None:
    """Raise for what cannot be a table whatever its steps give."""
    check_scheduler(scheduler)
    name = type(scheduler).__name__
    if not hasattr(scheduler, "step"):
        raise UnsupportedSchedulerError(f"{name}: it has no step(), so no step can be read off")
    for key, reason in _NO_TABLE.items():
        value = config_of(scheduler).get(key)
        if value is not None:
            raise UnsupportedSchedulerError(f"{name}: {key}={value!r} {reason}")


def _described(value: Any) -> str:
    """What came in a scheduler's place, shortly: a network prints itself over pages."""
    if isinstance(value, type):
        return f"the class {value.__name__}: {value.__name__}.from_config(...) makes an object"
    named = f"{type(value).__name__}, without set_timesteps()"
    if isinstance(value, torch.nn.Module):
        return f"the network {named}; it goes into the call: sampler(model, noise)"
    if hasattr(value, "scheduler"):
        return f"{named}; take its own, .scheduler"
    return f"{value!r}, without set_timesteps()" if isinstance(value, (str, int, float)) else named


def clamp(scheduler: Any) -> str:
    """Name the clamp that makes a step nonlinear; empty if none is configured."""
    for key in ("thresholding", "clip_sample", "clip_denoised"):
        if config_of(scheduler).get(key):
            return f"{key}=True clamps x0, which is not linear; construct it with {key}=False"
    return ""


def learned_variance(scheduler: Any) -> str:
    """Name the variance that a step misses in the model output; empty if none is configured."""
    value = str(config_of(scheduler).get("variance_type"))
    if not value.startswith("learned"):
        return ""
    fixed = "fixed_small_log" if type(scheduler).__name__ == "UnCLIPScheduler" else "fixed_small"
    return (
        f"variance_type={value!r} scales the noise by a network output; construct it with a fixed "
        f"variance, variance_type={fixed!r}"
    )


def fresh_noise(scheduler: Any) -> str:
    """Which setting makes a step use the noise of an earlier one; empty if none that is known."""
    config = config_of(scheduler)
    if "tau_func" in config:
        return (
            "its corrector uses the noise of the step before, which a row does not keep; construct "
            "it with tau_func=lambda t: 0, which adds none"
        )
    if str(config.get("algorithm_type")).startswith("sde"):
        return (
            f"algorithm_type={config['algorithm_type']!r} uses the noise of an earlier step, which "
            "a row does not keep; construct it with algorithm_type='dpmsolver++', which adds none"
        )
    return ""


def other_spacing(scheduler: Any) -> str:
    """What to change where the terms of a step cancel: the settings that make them large."""
    config = config_of(scheduler)
    ways = [f"without {key}=True" for key in _SPACINGS if config.get(key)]
    if (order := config.get("solver_order") or 1) > 1:
        ways.append(f"with solver_order={order - 1}")
    return f"construct it {' or '.join(ways)}" if ways else "take another number of steps"


def long_history(scheduler: Any, history: int, most: int) -> str:
    """Say that a step reads more outputs than the ops keep, and which setting makes it so."""
    config = config_of(scheduler)
    way = "take a solver of lower order"
    if "skip_prk_steps" in config:
        way = "construct it with skip_prk_steps=True"
    elif lower := [
        key for key in ("predictor_order", "corrector_order") if (config.get(key) or 1) > 1
    ]:
        way = f"construct it with a smaller {' and '.join(lower)}"
    return f"a step reads {history} outputs, of which at most {most} are kept; {way}"
