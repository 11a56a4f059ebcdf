"""What the executors need of torch.cuda and the driver, and nothing else of it: a narrow seam."""

import contextlib
import gc
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .capability import driver

# One capture at a time: torch's bookkeeping of them (generators, pools) is the process's.
_CAPTURING = threading.RLock()
# Streams that no runtime captures on now, by device.
_FREE: dict[torch.device, list["_Place"]] = defaultdict(list)
# Graphs whose capture was thrown away: torch's allocator of pinned memory goes on asking them.
_SPOILT: list[torch.cuda.CUDAGraph] = []
# A conditional's body takes cooperative launches from this driver on.
_COOPERATIVE = 12060


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

    def instantiate(self) -> None:
        """Makes it ready to launch, as its first launch would; a driver may refuse it here."""
        self._graph.instantiate()

    def replay(self) -> None:
        """Launches it on the current stream."""
        self._graph.replay()

    def bytes(self) -> int | None:
        """Device memory of what the function allocated; None where the allocator does not tell."""
        try:
            segments = torch.cuda.memory_snapshot(mempool_id=self._pool, include_traces=False)
        except RuntimeError:
            return None
        return sum(
            segment["total_size"]
            for segment in segments
            if tuple(segment["segment_pool_id"]) == tuple(self._pool)
        )

    def close(self) -> None:
        self.result = None
        self._graph.reset()


def _begin(graph: torch.cuda.CUDAGraph, device: torch.device, **options: Any) -> None:
    """Begins a capture; other threads may go on using the device, and drawing random numbers.

    torch 2.11 marks its generator's state until the capture ends, and draws of all threads then
    fail: it gets another state to mark.
    """
    generator = torch.cuda.default_generators[device.index]
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        graph.capture_begin(capture_error_mode="thread_local", **options)
    finally:
        generator.graphsafe_set_state(state)


class _Place:
    """A stream to capture on, with a workspace for matrix products that nothing else uses.

    torch keeps one for every stream, whoever works there. A first, tiny capture makes this stream's
    in memory of a graph that is never freed: graphs captured here later cannot lose it to others.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        ones = torch.ones(16, 16, device=device)
        ones @ ones  # this thread's handle, on another stream
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            _begin(self.graph, device)
            try:
                ones @ ones
            finally:
                self.graph.capture_end()


class Runtime:
    """One CUDA or ROCm device, with a stream to capture on that is its own until `release`."""

    def __init__(self, device: torch.device):
        self.device = device
        with _CAPTURING, torch.cuda.device(device):
            self._place = _FREE[device].pop() if _FREE[device] else _Place(device)
        self.stream = self._place.stream

    def release(self) -> None:
        """Gives the stream and unused memory back; the runtime is not used after."""
        if self._place is not None:
            _FREE[self.device].append(self._place)
            self._place = None
            torch.cuda.empty_cache()

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
        with _CAPTURING, self.on_stream(), _without_collector():
            # What warming up has left would stand beside the graph's own memory.
            self.stream.synchronize()
            torch.cuda.empty_cache()
            try:
                _begin(graph, self.device, pool=pool)
            except BaseException:
                self._tidy(graph, pool)
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
        return Captured(graph, pool, result)

    def _end(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        try:
            graph.capture_end()
        except BaseException:
            self._tidy(graph, pool)
            raise

    def _tidy(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        """Ends what torch leaves begun where the driver has thrown a capture away."""
        _SPOILT.append(graph)
        for end in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
            with contextlib.suppress(RuntimeError):
                end(self.device.index, pool)

    def pinned(self, shape: tuple[int, ...]) -> Tensor:
        """int32 zeros of the host that the device can write to."""
        with torch.inference_mode(False), torch.no_grad():
            return torch.zeros(shape, dtype=torch.int32, device="cpu", pin_memory=True)

    def copy(self, target: Tensor, value: Tensor) -> None:
        """Copies device memory to pinned memory, in order with what is on the current stream."""
        target.copy_(value, non_blocking=True)

    def mark(self) -> Mark:
        """A mark after all that is on the current stream."""
        return Mark(self.device)

    def follow(self, mark: Mark) -> None:
        """What comes on the current stream waits for the mark; the host does not."""
        torch.cuda.current_stream(self.device).wait_event(mark.event)

    def nodes(self, raw: int) -> list[tuple[int, str, list[int]]]:
        """[(handle, type, places of the nodes before it)] of a captured graph."""
        return driver()[0].nodes(raw)

    @property
    def takes_cooperative(self) -> bool:
        """Whether a loop inside a graph may hold cooperative kernels."""
        return driver()[0].version >= _COOPERATIVE

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


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """What the garbage collector frees may wait for the device, and so end a capture."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
