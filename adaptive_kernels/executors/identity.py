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

from ..sampling.network.facts import MOST, PLAIN, Same, location
from ..sampling.network.walk import Look

CONTAINERS = {list, tuple, dict, set}
DEPTH = 4  # steps from the model


def identity(model: Any, look: Look | None = None) -> list:
    """The identity of a model or of any value, to compare with ``==``.

    look: at the modules within; None looks at all of them anew.
    """
    facts: list = []
    _add(model, facts, DEPTH, set(), look or Look())
    return facts


def _add(value: Any, facts: list, depth: int, visited: set[int], look: Look) -> None:
    kind = type(value)
    if kind in PLAIN:
        facts.append(value)
    elif isinstance(value, Tensor):
        facts += (*location(value), value.shape)
    elif id(value) in visited or isinstance(value, (type, types.ModuleType)):
        facts.append(Same(value))
    else:
        visited.add(id(value))
        if isinstance(value, torch.nn.Module):
            facts.append(look.walk(value).facts)
        elif depth == 0:
            facts.append(Same(value))
        else:
            for part in _parts(value, facts):
                _add(part, facts, depth - 1, visited, look)


def _parts(value: Any, facts: list) -> list:
    """What there is to see of a value; of what cannot be compared itself, only the parts are."""
    facts.append(type(value))
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        code, scope = value.__code__, value.__globals__
        # Named by the code: a function made anew at each call is the same one.
        facts.append(Same(code))
        named = [scope[name] for name in code.co_names if name in scope]
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [value.__defaults__, value.__kwdefaults__, *cells, *named]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if type(value) in CONTAINERS and len(value) <= MOST:
        return [*value, *value.values()] if isinstance(value, dict) else list(value)
    facts.append(Same(value))
    return list(getattr(value, "__dict__", {}).values())


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not bound yet
