"""What two looks at a network compare: plain values, objects themselves, places of tensors."""

from typing import Any

import torch
from torch import Tensor

PLAIN = {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
MOST = 1000  # of a container
ORDINARY = (Tensor, torch.nn.Parameter)  # types of tensors that wrap no others


class Same:
    """Equal to itself alone; kept, so that nothing else comes to stand at its address."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None


def location(tensor: Tensor) -> list:
    """Where a tensor's values lie, and how they are read; those of the tensors it wraps, too."""
    try:
        address: list = [tensor.data_ptr(), tensor.dtype]
    except (RuntimeError, ValueError):  # sparse, or not made yet
        address = [Same(tensor)]
    if type(tensor) not in ORDINARY and hasattr(type(tensor), "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            address += location(getattr(tensor, name))
    return address
