"""What the executors need of torch.cuda and the driver, and nothing else of it: a narrow seam."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .capability import driver

# One capture at a time: torch's bookkeeping of them (generators, pools) is the process's.
_CAPTURING = threading.RLock()


class Mark:
    """A point of a stream's work."""

    def __init__(self, device: torch.device):
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record(torch.cuda.current_stream(device))

    def done(self) -> bool:
        return self.event.query()

    def wait(self) -> None:
        self.event.synchronize()

    def until(self, later: "Mark") -> float:
        """Milliseconds from this mark to a later one; both are past."""
        return self.event.elapsed_time(later.event)


class Captured:
    """The captured launches of one call of a function, in memory of their own.

    raw: the graph's handle. result: what the function returned; its tensors live as long as this.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int], result: Any):
        self._graph, self._pool, self.result = graph, pool, result

    @property
    def raw(self) -> int:
        return self._graph.raw_cuda_graph()

    def replay(self) -> None:
        """Launches it on the current stream."""
        self._graph.replay()

    def bytes(self) -> int:
        """Device memory of what the function allocated."""
        segments = torch.cuda.memory_snapshot(mempool_id=self._pool, include_traces=False)
        return sum(
            segment["total_size"]
            for segment in segments
            if tuple(segment["segment_pool_id"]) == tuple(self._pool)
        )

    def close(self) -> None:
        self.result = None
        self._graph.reset()


class Runtime:
    """One CUDA or ROCm device, with a stream of its own to capture on."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        """Its stream is current, in order with the caller's before and after."""
        with torch.cuda.device(self.device):
            outside = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(outside)
            try:
                with torch.cuda.stream(self.stream):
                    yield
            finally:
                outside.wait_stream(self.stream)

    def synchronize(self) -> None:
        self.stream.synchronize()

    def capture(self, function: Callable[[], Any]) -> Captured:
        """Captures one call of a function; what it raises passes, and torch stays usable."""
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        pool = torch.cuda.graph_pool_handle()
        with _CAPTURING, self.on_stream():
            # What warming up has left would stand beside the graph's own memory.
            self.stream.synchronize()
            torch.cuda.empty_cache()
            # The graph's matrix products get a workspace of the graph's own, and nobody else does.
            torch._C._cuda_clearCublasWorkspaces()
            try:
                try:
                    # Other threads may go on using the device.
                    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                except BaseException:
                    self._tidy(pool)
                    raise
                try:
                    result = function()
                except BaseException:
                    # The stream leaves the capture by its end alone; what was raised says more.
                    with contextlib.suppress(RuntimeError):
                        self._end(graph, pool)
                    graph.reset()
                    raise
                self._end(graph, pool)
            finally:
                torch._C._cuda_clearCublasWorkspaces()
        return Captured(graph, pool, result)

    def _end(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        try:
            graph.capture_end()
        except BaseException:
            self._tidy(pool)
            raise

    def _tidy(self, pool: tuple[int, int]) -> None:
        """Ends what torch leaves begun where the driver has thrown a capture away."""
        index = self.device.index
        for end in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with contextlib.suppress(RuntimeError):
                end(index, pool)
        # torch 2.11 leaves its generator waiting for the capture's end: it refuses to draw.
        generator = torch.cuda.default_generators[index]
        clean, offset = generator.clone_state(), generator.get_offset()
        try:
            torch.empty(1, device=self.device).uniform_()
            generator.set_offset(offset)
        except RuntimeError:
            generator.graphsafe_set_state(clean)

    def pinned(self, shape: tuple[int, ...]) -> Tensor:
        """int32 zeros of the host that the device can write to."""
        return torch.zeros(shape, dtype=torch.int32, pin_memory=True)

    def copy(self, into: Tensor, value: Tensor) -> None:
        """Copies device memory to pinned memory, in order with what is on the current stream."""
        into.copy_(value, non_blocking=True)

    def mark(self) -> Mark:
        """A mark after all that is on the current stream."""
        return Mark(self.device)

    def follow(self, mark: Mark) -> None:
        """What comes on the current stream waits for the mark; the host does not."""
        torch.cuda.current_stream(self.device).wait_event(mark.event)

    def nodes(self, raw: int) -> list[tuple[int, str, list[int]]]:
        """[(handle, type, places of the nodes before it)] of a captured graph."""
        return driver()[0].nodes(raw)

    def refusal(self, raw: int) -> str | None:
        """Why a captured graph cannot be part of a loop; None: it can."""
        return driver()[0].refusal(raw)

    def loop(self) -> Any:
        """An empty loop inside a graph (`_graph.WhileGraph`)."""
        from . import _graph

        with torch.cuda.device(self.device):
            return _graph.WhileGraph(driver()[0])

    def upload(self, loop: Any) -> None:
        """Brings a loop to the device, so that its first launch is as short as any."""
        with torch.cuda.device(self.device):
            loop.upload(torch.cuda.current_stream(self.device).cuda_stream)

    def launch(self, loop: Any) -> None:
        """Launches a loop on the current stream."""
        with torch.cuda.device(self.device):
            loop.launch(torch.cuda.current_stream(self.device).cuda_stream)
