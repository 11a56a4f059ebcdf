"""What a network must not do inside a CUDA graph, seen while it runs outside of one."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_TORCH = str(Path(torch.__file__).parent) + os.sep
_HERE = str(Path(__file__).parents[1]) + os.sep
# Ops whose result the host waits for: a value or a size.
_WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "is_nonzero"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "_linalg_check_errors"),
}
_HINTS = {
    "_local_scalar_dense": "a value is read on the host (.item(), float(), if tensor)",
    "copy": "a tensor is copied between host and device",
    "lift_fresh": "a tensor is made from host values (torch.tensor)",
}


class CaptureError(RuntimeError):
    """A network cannot be captured in a CUDA graph; says where and why.

    Raised by the executors "graph" and "groups"; under "auto" the plain loop goes on instead, and
    the text is in `SamplingResult.executor_why`. A kind of RuntimeError, which says that an
    executor does not work here at all.
    """


def where(error: BaseException) -> str:
    """The place of the user's code that an error came from: "file:line in function"."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not f.filename.startswith((_TORCH, _HERE))]
    frame = (outside or frames or [None])[-1]
    return (
        "an unknown place" if frame is None else f"{frame.filename}:{frame.lineno} in {frame.name}"
    )


def is_compiled(model: Any) -> bool:
    """Whether a network is compiled, or holds compiled modules: a dispatch mode would undo it."""
    if hasattr(model, "_torchdynamo_orig_callable"):
        return True
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    # By name: importing what compiles takes seconds.
    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in modules
    )


class Guard(TorchDispatchMode):
    """Refuses, by name and before it happens, what a capture would fail or go wrong on.

    Random numbers: a graph would replay the same ones, or none. Host reads and copies: they wait
    for the device, or leave an address of the host behind. Of this thread alone.

    Args:
        device: the watched one.

    Raises: CaptureError from within the network.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.type = device, device.type

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if hint := self._waits(name, args, kwargs):
            raise CaptureError(f"the network synchronises (aten.{name}): {hint}")
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            raise CaptureError(f"the network draws random numbers (aten.{name})")
        # Attention has the tag without dropout too: what counts is whether the generator moved.
        result, drawn = self.draws(lambda: func(*args, **kwargs))
        if drawn:
            raise CaptureError(
                f"the network draws random numbers (aten.{name}); model.eval() ends dropout"
            )
        return result

    def draws(self, call: Callable[[], Any]) -> tuple[Any, bool]:
        """What a call returns, and whether it draws from the device's generator."""
        before = self._generator()
        result = call()
        if self._generator() == before:
            return result, False
        # It may have been another thread's draw: once is no proof.
        before = self._generator()
        result = call()
        return result, self._generator() != before

    def _waits(self, name: str, args: tuple, kwargs: dict) -> str | None:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if name in ("_to_copy", "copy_", "copy"):
            target = kwargs.get("device")
            devices |= set() if target is None else {torch.device(target).type}
            return _HINTS["copy"] if self.type in devices and len(devices) > 1 else None
        if self.type not in devices:
            return None
        if name in _WAITING:
            return _HINTS.get(name, "the host waits for a value or a size")
        if name == "lift_fresh":
            return _HINTS["lift_fresh"]
        if name in ("index", "index_put", "index_put_"):
            masked = any(m is not None and m.dtype in (torch.bool, torch.uint8) for m in args[1])
            # One value written through a mask is a fill, which waits for nothing.
            fill = len(args) > 2 and args[2].numel() == 1 and not (len(args) > 3 and args[3])
            if masked and not fill:
                return "a tensor is indexed with a mask, whose size the host waits for"
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            return "the host waits for the size; output_size= tells it"
        return None

    def _generator(self) -> Any:
        if self.type != "cuda":
            return torch.random.get_rng_state().numpy().tobytes()
        return torch.cuda.default_generators[self.device.index].get_offset()
