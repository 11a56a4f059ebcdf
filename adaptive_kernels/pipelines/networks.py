"""Which modules of a pipeline are its networks, and whether it is a pipeline that can be served."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch

# Components that diffusers' pipelines call at every step, by the names they give to them.
NAMES = (
    *("unet", "unet_2", "transformer", "transformer_2", "transformer_3"),
    *("prior", "decoder", "controlnet", "controlnet_2"),
)
# Networks that feed another one and predict nothing themselves.
_FEEDING = ("controlnet", "controlnet_2")


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
    for word in ("scheduler.step(", "progress_bar("):
        if not _mentions(type(pipe), word):
            inner = [name for name in vars(pipe) if name.endswith("_pipe")]
            hint = f"; enable its {' and '.join(inner)}" if inner else ""
            raise ValueError(
                f"pipe must call {word}) in its own loop, which {names[0]} does not{hint}"
            )


@functools.cache
def _mentions(kind: type, word: str) -> bool:
    """Whether the source of a pipeline's class has the word; yes where nobody can tell."""
    for base in kind.__mro__[:-1]:
        if base.__name__ == "DiffusionPipeline":
            break
        try:
            if word in inspect.getsource(base):
                return True
        except (OSError, TypeError):
            return True
    return False


def find(pipe: Any, names: Sequence[str] | None) -> dict[str, torch.nn.Module]:
    """{name: module} of a pipeline's networks, called once or more in every step.

    names: the components that are, or None for those that diffusers calls so.

    Raises: ValueError where there is none, TypeError where a name is of no module.
    """
    if names is None:
        found = {name: getattr(pipe, name) for name in NAMES if _has(pipe, name)}
        if not found.keys() - set(_FEEDING):
            raise ValueError(
                f"networks must be named for {type(pipe).__name__}: none of its components is "
                f"called {', '.join(n for n in NAMES if n not in _FEEDING)}; it has {_listed(pipe)}"
            )
        return found
    if isinstance(names, str) or not all(isinstance(name, str) for name in names) or not names:
        raise TypeError(f"networks must be a sequence of component names, got {names!r}")
    for name in names:
        if not _has(pipe, name):
            raise ValueError(
                f"networks must name modules of {type(pipe).__name__} ({_listed(pipe)}), "
                f"got {name!r}"
            )
    return {name: getattr(pipe, name) for name in names}


def _has(pipe: Any, name: str) -> bool:
    return isinstance(getattr(pipe, name, None), torch.nn.Module)


def method(module: torch.nn.Module) -> str:
    """What a call of the module runs: a module with compile() called has a call of its own."""
    return "forward" if module._compiled_call_impl is None else "_compiled_call_impl"


def _listed(pipe: Any) -> str:
    modules = sorted(name for name in vars(pipe) if _has(pipe, name))
    return f"the modules {', '.join(modules)}" if modules else "no modules"
