"""How a network wants to be called, by its class and its signature.

What pipelines of diffusers do about their transformers is written down here (diffusers 0.42.1).
"""

import inspect
import weakref
from collections.abc import Callable

import torch

# What pipelines multiply the scheduler's timesteps by; 1 for all others.
TIMESTEP_SCALES = {
    "AuraFlowTransformer2DModel": 1e-3,
    "ChromaTransformer2DModel": 1e-3,
    "Flux2Transformer2DModel": 1e-3,
    "FluxTransformer2DModel": 1e-3,
    "Krea2Transformer2DModel": 1e-3,
    "LongCatImageTransformer2DModel": 1e-3,
    "OvisImageTransformer2DModel": 1e-3,
    "PRXTransformer2DModel": 1e-3,
    "QwenImage21Transformer2DModel": 1e-3,
    "QwenImageTransformer2DModel": 1e-3,
}
# More than a factor: a function of the user's own must do it.
OTHERWISE = {
    "GlmImageTransformer2DModel": "timestep - 1",
    "HiDreamImageTransformer2DModel": "the negative of the output",
    "Ideogram4Transformer2DModel": "1 - timestep / 1000",
    "Lumina2Transformer2DModel": "1 - timestep / 1000 and the negative of the output",
    "LuminaNextDiT2DModel": "1 - timestep / 1000 and the negative of the output",
    "NucleusMoEImageTransformer2DModel": "timestep / 1000 and the negative of the output",
    "ZImageTransformer2DModel": "(1000 - timestep) / 1000 and the negative of the output",
}
_TIMESTEPS = ("timestep", "timesteps")
# The first argument of diffusers' transformers; a U-Net's is called sample.
_INPUT = "hidden_states"
# Of functions that were asked for before, bound and not.
_PARAMETERS: weakref.WeakKeyDictionary[Callable, dict] = weakref.WeakKeyDictionary()


def inner(model: torch.nn.Module) -> torch.nn.Module:
    """A network under what torch.compile, parallel wrappers and PEFT put around it."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        # Asked for in these places: a module takes its time to say that it has no attribute.
        if "_orig_mod" in model._modules:
            model = model._orig_mod
        elif isinstance(model, parallel):
            model = model.module
        elif callable(getattr(type(model), "get_base_model", None)):
            model = model.get_base_model()
        else:
            return model


def _author(network: torch.nn.Module) -> type:
    """The class that says how a network is called: the one that defines its forward()."""
    return next(kind for kind in type(network).__mro__ if "forward" in vars(kind))


def _is_diffusers(network: torch.nn.Module) -> bool:
    return _author(network).__module__.split(".")[0] == "diffusers"


def scale_of(network: torch.nn.Module) -> float:
    """What an `inner` network's pipeline multiplies the scheduler's timesteps by."""
    name = _author(network).__name__
    if name in OTHERWISE:
        raise ValueError(
            f"model must be called as the scheduler has it, and the pipeline of {name} takes "
            f"{OTHERWISE[name]}: pass a function that does so, and its dtype with dtype="
        )
    if name == "SanaTransformer2DModel":
        return float(network.config.timestep_scale)
    return TIMESTEP_SCALES.get(name, 1.0)


def predicts_variance(network: torch.nn.Module) -> bool:
    """Whether an `inner` network of diffusers gives twice the channels that it takes."""
    config = getattr(network, "config", None)
    taken, given = (getattr(config, name, None) for name in ("in_channels", "out_channels"))
    whole = isinstance(taken, int) and isinstance(given, int)
    return whole and given == 2 * taken and _is_diffusers(network)


def by_name(network: torch.nn.Module) -> bool:
    """Whether the order of a network's arguments asks for a call by their names.

    Of a user's own network only where that is what its signature must mean: one with a timestep
    that may be left out, behind one that may not, is called in order.
    """
    found = parameters(network)
    name = places(found)[1]
    if name is None or found[0].name != _INPUT:
        return False
    time = next(p for p in found if p.name == name)
    optional = time.default is not time.empty and found[1].default is found[1].empty
    return not optional or _is_diffusers(network)


def places(found: list[inspect.Parameter]) -> tuple[str | None, str | None]:
    """Names of a network's input and timestep, where it is not called with them in order."""
    names = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    time = next((name for name in _TIMESTEPS if name in names), None)
    if time is None or names[1:2] == [time]:
        return None, None
    return next((name for name in names if name != time), None), time


def _without_values(parameter: inspect.Parameter) -> inspect.Parameter:
    """With None for its default: a default may hold the network, which shall not be kept."""
    default = parameter.empty if parameter.default is parameter.empty else None
    return parameter.replace(default=default, annotation=parameter.empty)


def parameters(network: torch.nn.Module) -> list[inspect.Parameter]:
    """What the forward() of an `inner` network takes."""
    forward = network.forward
    function = getattr(forward, "__func__", forward)
    try:
        known = _PARAMETERS.setdefault(function, {})
    except TypeError:  # no key, as an object of C++ is none
        known = {}
    bound = forward is not function
    if bound not in known:
        try:
            found = inspect.signature(forward).parameters.values()
            known[bound] = [_without_values(parameter) for parameter in found]
        except (TypeError, ValueError):  # compiled code says nothing
            known[bound] = []
    return known[bound]
