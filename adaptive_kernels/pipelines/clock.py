"""How long the networks' calls took: by the host's clock, or by events on the device."""

import time
from typing import Any

import torch
from torch import Tensor


class Stopwatch:
    """Adds up stretches of work on the device that their tensors lie on; waits for nothing."""

    def __init__(self) -> None:
        self._host = 0.0
        self._pairs: list[tuple[Any, Any]] = []

    def begin(self, tensor: Tensor | None) -> Any:
        """Begins a stretch: a time, or an event in the stream."""
        return _mark(tensor)

    def end(self, began: Any, tensor: Tensor | None) -> None:
        ended = _mark(tensor)
        if isinstance(began, float):
            self._host += ended - began
        else:
            self._pairs.append((began, ended))

    def seconds(self) -> float:
        """The sum; the device must have done them all."""
        total = self._host
        for began, ended in self._pairs:
            ended.synchronize()
            total += began.elapsed_time(ended) / 1000
        return total


def _mark(tensor: Tensor | None) -> Any:
    kind = "cpu" if tensor is None else tensor.device.type
    if kind not in ("cuda", "xpu"):
        return time.perf_counter()
    device = getattr(torch, kind)
    event = device.Event(enable_timing=True)
    event.record(device.current_stream(tensor.device))
    return event
