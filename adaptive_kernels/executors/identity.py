"""What a captured call of a model goes on using: where its tensors lie, and its plain values.

Two equal identities mean that a capture of the one call serves the other. Seen are a module's
parameters, buffers, hooks and plain attributes (a LoRA's scale), and what a function, a partial or
an object reaches within a few steps: closures, defaults, globals it names, attributes.
"""

import functools
import types
from typing import Any

import torch
from torch import Tensor

PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
CONTAINERS = {list, tuple, dict, set}
DEPTH = 4  # steps from the model
MOST = 1000  # of a container
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# What every module holds; looked at apart, or of no effect on a call.
_OWN = {*torch.nn.Module().__dict__} - {"training"}
_ORDINARY = (Tensor, torch.nn.Parameter)


class _Same:
    """Equal to itself alone; kept, so that nothing else comes to stand at its address."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None


def identity(model: Any) -> list:
    """The identity of a model or of any value, to compare with ``==``."""
    found: list = []
    _add(model, found, DEPTH, set())
    return found


def _add(value: Any, found: list, depth: int, seen: set[int]) -> None:
    kind = type(value)
    if kind in PLAIN:
        found.append(value)
    elif isinstance(value, Tensor):
        found += (*_lies(value), value.shape)
    elif id(value) in seen or isinstance(value, (type, types.ModuleType)):
        found.append(_Same(value))
    else:
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            _add_module(value, found)
        elif depth == 0:
            found.append(_Same(value))
        else:
            for part in _parts(value, found):
                _add(part, found, depth - 1, seen)


def _parts(value: Any, found: list) -> list:
    """What there is to see of a value; of what cannot be compared itself, only the parts are."""
    found.append(type(value))
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        code, given = value.__code__, value.__globals__
        # Named by the code: a function made anew at each call is the same one.
        found.append(_Same(code))
        named = [given[name] for name in code.co_names if name in given]
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [value.__defaults__, value.__kwdefaults__, *cells, *named]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if type(value) in CONTAINERS and len(value) <= MOST:
        return [*value, *value.values()] if isinstance(value, dict) else list(value)
    found.append(_Same(value))
    return list(getattr(value, "__dict__", {}).values())


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not bound yet


def _lies(tensor: Tensor) -> list:
    """Where a tensor's values lie, and how they are read; those of the tensors it wraps, too."""
    try:
        at: list = [tensor.data_ptr(), tensor.dtype]
    except (RuntimeError, ValueError):  # sparse, or not made yet
        at = [_Same(tensor)]
    if type(tensor) not in _ORDINARY and hasattr(type(tensor), "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            at += _lies(getattr(tensor, name))
    return at


def _add_module(module: torch.nn.Module, found: list) -> None:
    """By hand: it is asked for at every sampling, and torch's own walks take five times as long."""
    found.append(_Same(module))
    left, seen = [module], {id(module)}
    while left:
        here = left.pop()
        for tensor in (*_held(here, "_parameters"), *_held(here, "_buffers")):
            if tensor is not None:
                found += _lies(tensor)
        for inner in _held(here, "_modules"):
            if inner is not None and id(inner) not in seen:
                seen.add(id(inner))
                left.append(inner)
        for name in _HOOKS:
            if hooks := here.__dict__.get(name):
                found += map(_Same, hooks.values())
        for name, value in here.__dict__.items():
            if name not in _OWN:
                found += _attribute(value)


def _attribute(value: Any) -> list:
    kind = type(value)
    if kind in PLAIN:
        return [value]
    if isinstance(value, Tensor):
        return _lies(value)
    if isinstance(value, (dict, list, tuple, set)):
        entries = value.values() if isinstance(value, dict) else value
        return [entry for entry in entries if type(entry) in PLAIN] if len(value) <= MOST else []
    # An attention processor, say, and its scale.
    held = () if isinstance(value, torch.nn.Module) else getattr(value, "__dict__", {}).values()
    return [_Same(value), *(part for part in held if type(part) in PLAIN)]


def _held(module: torch.nn.Module, name: str) -> list:
    held = module.__dict__.get(name)
    if held is None:  # a scripted module keeps them elsewhere
        return list(getattr(module, name.removeprefix("_"))())
    return list(held.values())
