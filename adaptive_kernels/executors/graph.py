"""The whole loop in one launch: WHILE { network -> advance } inside a CUDA graph.

    copy of the samples' steps to the host    network, a child graph
                       \\                       /
                        kernels of `advance`, the last of which sets the condition

The copy shows the steps before the tick and runs beside the network, so that watching takes no time
of the loop's. The kernels stand in the body itself, since they set its condition.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .capture import CapturedNetwork
from .guard import CaptureError

POLL = 0.002  # seconds between two looks at the progress


@dataclass(frozen=True)
class Child:
    """A captured graph, whole."""

    graph: int
    after: tuple[int, ...] = ()

    def add(self, loop: Any) -> None:
        loop.add_child(self.graph, self.after)


@dataclass(frozen=True)
class Kernel:
    """A captured kernel."""

    captured: int
    after: tuple[int, ...] = ()

    def add(self, loop: Any) -> None:
        loop.add_kernel(self.captured, self.after)


@dataclass(frozen=True)
class Copy:
    """Device memory to pinned memory of the host."""

    destination: int
    source: int
    bytes: int
    after: tuple[int, ...] = ()

    def add(self, loop: Any) -> None:
        loop.add_copy(self.destination, self.source, self.bytes, self.after)


Node = Child | Kernel | Copy


def body(progress: Copy, network: int, advance: list[tuple[int, str, list[int]]]) -> list[Node]:
    """The body's nodes, each after the places in `after`.

    Args:
        progress: the copy that shows how far the samples are.
        network: handle of the captured network.
        advance: (handle, type, places before it) of every node that `advance` was captured as.

    Raises: CaptureError where `advance` is anything but kernels.
    """
    nodes: list[Node] = [progress, Child(network)]
    placed: dict[int, int] = {}
    while len(placed) < len(advance):
        ready = [
            k
            for k, (_, _, before) in enumerate(advance)
            if k not in placed and all(other in placed for other in before)
        ]
        for k in ready:
            captured, kind, before = advance[k]
            if kind != "kernel":
                raise CaptureError(f"advance must be kernels alone, got a node of type {kind}")
            placed[k] = len(nodes)
            nodes.append(Kernel(captured, tuple(placed[other] for other in before) or (0, 1)))
    return nodes


class Loop:
    """The loop over a captured network, built and ready to launch.

    Raises: CaptureError naming what the driver refused; then nothing of it is left.
    """

    def __init__(self, network: CapturedNetwork, steps: int):
        self.network, self.steps = network, steps
        self.progress = network.runtime.pinned(tuple(network.state.index.shape))
        self.loop = self._built()

    def run(self, bar: Any) -> None:
        """One launch; watches it for the bar's sake only."""
        runtime, network = self.network.runtime, self.network
        if not bar.disable:
            self.progress.zero_()
        runtime.launch(self.loop)
        network.last = runtime.mark()
        while not bar.disable and not network.last.done():
            # What another thread's launch left may be ahead.
            bar.update(max(int(self.progress.sum()) - bar.n, 0))
            time.sleep(POLL)

    def close(self) -> None:
        self.loop.close()

    def _built(self) -> Any:
        runtime = self.network.runtime
        if reason := runtime.refusal(self.network.graph.raw):
            raise CaptureError(f"of the captured network, {reason}")
        # Before driver 12.6, and under MPS, a body takes no cooperative launch: `step` needs none.
        attempts = [self._advance, self._steps] if runtime.takes_cooperative else [self._steps]
        reasons = []
        for launch in attempts:
            try:
                return self._build(launch)
            except RuntimeError as error:
                reasons.append(str(error))
        raise CaptureError(f"the loop could not be built: {reasons[0]}")

    def _build(self, launch: Callable[[int], None]) -> Any:
        runtime, index = self.network.runtime, self.network.state.index
        loop = runtime.loop()
        kernels = None
        try:
            kernels = runtime.capture(lambda: launch(loop.condition))
            progress = Copy(self.progress.data_ptr(), index.data_ptr(), index.nbytes)
            for node in body(progress, self.network.graph.raw, runtime.nodes(kernels.raw)):
                node.add(loop)
            loop.instantiate()
            runtime.upload(loop)
            return loop
        except BaseException:
            loop.close()
            raise
        finally:
            # The loop has copies of them.
            if kernels is not None:
                kernels.close()

    def _advance(self, condition: int) -> None:
        self.network.state.advance(self.network.output, condition=condition)

    def _steps(self, condition: int) -> None:
        for k in range(self.steps):
            last = k == self.steps - 1
            self.network.state.step(k == 0, self.network.output, condition if last else None)
