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
    facts: list = []
    _add(model, facts, DEPTH, set())
    return facts


def _add(value: Any, facts: list, depth: int, visited: set[int]) -> None:
    kind = type(value)
    if kind in PLAIN:
        facts.append(value)
    elif isinstance(value, Tensor):
        facts += (*_location(value), value.shape)
    elif id(value) in visited or isinstance(value, (type, types.ModuleType)):
        facts.append(_Same(value))
    else:
        visited.add(id(value))
        if isinstance(value, torch.nn.Module):
            _add_module(value, facts)
        elif depth == 0:
            facts.append(_Same(value))
        else:
            for part in _parts(value, facts):
                _add(part, facts, depth - 1, visited)


def _parts(value: Any, facts: list) -> list:
    """What there is to see of a value; of what cannot be compared itself, only the parts are."""
    facts.append(type(value))
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        code, scope = value.__code__, value.__globals__
        # Named by the code: a function made anew at each call is the same one.
        facts.append(_Same(code))
        named = [scope[name] for name in code.co_names if name in scope]
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [value.__defaults__, value.__kwdefaults__, *cells, *named]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if type(value) in CONTAINERS and len(value) <= MOST:
        return [*value, *value.values()] if isinstance(value, dict) else list(value)
    facts.append(_Same(value))
    return list(getattr(value, "__dict__", {}).values())


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not bound yet


def _location(tensor: Tensor) -> list:
    """Where a tensor's values lie, and how they are read; those of the tensors it wraps, too."""
    try:
        address: list = [tensor.data_ptr(), tensor.dtype]
    except (RuntimeError, ValueError):  # sparse, or not made yet
        address = [_Same(tensor)]
    if type(tensor) not in _ORDINARY and hasattr(type(tensor), "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            address += _location(getattr(tensor, name))
    return address


def _add_module(module: torch.nn.Module, facts: list) -> None:
    """By hand: it is asked for at every sampling, and torch's own walks take five times as long."""
    facts.append(_Same(module))
    stack, visited = [module], {id(module)}
    while stack:
        current = stack.pop()
        for tensor in (*_held(current, "_parameters"), *_held(current, "_buffers")):
            if tensor is not None:
                facts += _location(tensor)
        for inner in _held(current, "_modules"):
            if inner is not None and id(inner) not in visited:
                visited.add(id(inner))
                stack.append(inner)
        for name in _HOOKS:
            if hooks := current.__dict__.get(name):
                facts += map(_Same, hooks.values())
        for name, value in current.__dict__.items():
            if name not in _OWN:
                facts += _attribute(value)


def _attribute(value: Any) -> list:
    kind = type(value)
    if kind in PLAIN:
        return [value]
    if isinstance(value, Tensor):
        return _location(value)
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
