"""Which modules of a pipeline are its networks, and whether it is a pipeline that can be served."""

import contextlib
import functools
import inspect
from typing import Any

import torch

from ..sampling.network import network_dtype

# Components that diffusers' pipelines call at every step, by the names they give to them.
NAMES = ("unet", "transformer", "transformer_2", "prior", "decoder", "controlnet")
# What the sources of pipelines that cannot be served have, and why they cannot.
_REFUSED = {
    "scheduler.__dict__": "steps several views with one scheduler by turns",
    "store_processor": "reads its network's attention at every step",
    "attention_store": "reads its network's attention at every step",
}
# Networks that feed another one and predict nothing themselves.
_FEEDING = ("controlnet",)


def check_pipeline(pipe: Any) -> None:
    """Raise TypeError or ValueError for what is no pipeline that steps a scheduler itself."""
    names = [base.__name__ for base in type(pipe).__mro__]
    if isinstance(pipe, type) or "ModularPipeline" in names:
        kind = "the class" if isinstance(pipe, type) else "the modular pipeline"
        raise TypeError(
            "pipe must be a pipeline object of diffusers (StableDiffusionXLPipeline and its like), "
            f"got {kind} {pipe.__name__ if isinstance(pipe, type) else names[0]}"
        )
    # On the class: a pipeline that lacks a component raises when it is asked for them.
    missing = [name for name in ("components", "progress_bar") if not hasattr(type(pipe), name)]
    if missing:
        raise TypeError(
            f"pipe must be a pipeline of diffusers, got {names[0]} without {missing[0]}"
        )
    if not hasattr(getattr(pipe, "scheduler", None), "step"):
        raise ValueError(f"pipe must have a scheduler, got {names[0]} with {_listed(pipe)}")
    for word, why in _REFUSED.items():
        if _mentions(type(pipe), word, False):
            raise ValueError(f"pipe must not be a {names[0]}, which {why}")
    for word in ("scheduler.step(", "progress_bar("):
        if not _mentions(type(pipe), word):
            inner = [name for name in vars(pipe) if name.endswith("_pipe")]
            hint = f"; enable its {' and '.join(inner)}" if inner else ""
            raise ValueError(
                f"pipe must call {word}) in its own loop, which {names[0]} does not{hint}"
            )


@functools.cache
def _mentions(kind: type, word: str, unknown: bool = True) -> bool:
    """Whether the source of a pipeline's class has the word; unknown: where nobody can tell."""
    for base in kind.__mro__[:-1]:
        if base.__name__ == "DiffusionPipeline":
            break
        try:
            if word in inspect.getsource(base):
                return True
        except (OSError, TypeError):
            return unknown
    return False


def find(pipe: Any, names: tuple[str, ...] | None) -> dict[str, torch.nn.Module]:
    """{name: module} of a pipeline's networks, called once or more in every step.

    names: the components that are, or None for those that diffusers calls so.

    Raises: ValueError where there is none, or a name is of no module.
    """
    if names is None:
        found = {name: getattr(pipe, name) for name in NAMES if _has(pipe, name)}
        if not found.keys() - set(_FEEDING):
            raise ValueError(
                f"networks must be named for {type(pipe).__name__}: none of its components is "
                f"called {', '.join(n for n in NAMES if n not in _FEEDING)}; it has {_listed(pipe)}"
            )
        return found
    for name in names:
        if not _has(pipe, name):
            raise ValueError(
                f"networks must name modules of {type(pipe).__name__} ({_listed(pipe)}), "
                f"got {name!r}"
            )
    return {name: getattr(pipe, name) for name in names}


def dtype_of(networks: dict[str, torch.nn.Module]) -> torch.dtype:
    """What the networks are fed: the coarsest of those that predict something."""
    found = []
    for name, module in networks.items():
        if name not in _FEEDING:
            with contextlib.suppress(TypeError):
                found.append(network_dtype(module))
    return max(found, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def guidance_of(pipe: Any) -> float | None:
    """The scale by which a pipeline combines two predictions; None where it does not say."""
    scale = getattr(pipe, "guidance_scale", None)
    if isinstance(scale, torch.Tensor):
        # A scale for every frame.
        scale = scale.max().item() if scale.numel() else None
    return float(scale) if isinstance(scale, (int, float)) else None


def names_of(networks: Any) -> tuple[str, ...] | None:
    """The names that a user gave. Raises: TypeError where they are none."""
    if networks is None:
        return None
    given = networks
    if not isinstance(networks, str):
        with contextlib.suppress(TypeError):
            given = tuple(networks)
    if not (isinstance(given, tuple) and given and all(isinstance(n, str) for n in given)):
        raise TypeError(f"networks must be a sequence of component names, got {given!r}")
    return given


def _has(pipe: Any, name: str) -> bool:
    return isinstance(getattr(pipe, name, None), torch.nn.Module)


def method(module: torch.nn.Module) -> str:
    """What a call of the module runs: a module with compile() called has a call of its own."""
    return "forward" if module._compiled_call_impl is None else "_compiled_call_impl"


def _listed(pipe: Any) -> str:
    modules = sorted(name for name in vars(pipe) if _has(pipe, name))
    return f"the modules {', '.join(modules)}" if modules else "no modules"
