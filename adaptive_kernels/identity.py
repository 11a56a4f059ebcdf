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
_APART = ("_parameters", "_buffers", "_modules")


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
        found += (_address(value), value.dtype, value.shape)
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


def _address(tensor: Tensor) -> Any:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor without memory of its own
        return _Same(tensor)


def _add_module(module: torch.nn.Module, found: list) -> None:
    """By hand: it is asked for at every sampling, and torch's own walks take five times as long."""
    found.append(_Same(module))
    left = [module]
    while left:
        held = left.pop().__dict__
        found += [len(held.get("_forward_hooks", ())), len(held.get("_forward_pre_hooks", ()))]
        for tensor in (*held["_parameters"].values(), *held["_buffers"].values()):
            if tensor is not None:
                found += (_address(tensor), tensor.dtype)
        left += [inner for inner in held["_modules"].values() if inner is not None]
        found += [value for value in held.values() if type(value) in PLAIN]
        for name, value in held.items():
            if type(value) in CONTAINERS and value and name not in _APART and len(value) <= MOST:
                entries = value.values() if isinstance(value, dict) else value
                found += [entry for entry in entries if type(entry) in PLAIN]
