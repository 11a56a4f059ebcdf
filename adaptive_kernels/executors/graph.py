"""The whole loop in one launch: WHILE { network -> advance } inside a CUDA graph.

    copy of the samples' steps to the host    network, a child graph
                       \\                       /
                        kernels of `advance`, the last of which sets the condition

The copy shows the steps before the tick and runs beside the network, so that watching takes no time
of the loop's. The kernels stand in the body itself, since they set its condition.
"""

import time
from collections.abc import Callable
from typing import Any

from .capture import CapturedNetwork
from .guard import CaptureError

POLL = 0.002  # seconds between two looks at the progress


def chain(nodes: list[tuple[int, str, list[int]]]) -> list[int]:
    """Handles of the kernels that `advance` was captured as, each after the one before it.

    Args:
        nodes: (handle, type, places of the nodes before it), in any order.

    Raises: CaptureError where it is anything but kernels one after another.
    """
    next_of = {tuple(before): place for place, (_, _, before) in enumerate(nodes)}
    handles: list[int] = []
    place = next_of.get(())
    while place is not None:
        handle, kind, _ = nodes[place]
        if kind != "kernel":
            raise CaptureError(f"advance must be kernels alone, got a node of type {kind}")
        handles.append(handle)
        place = next_of.get((place,))
    if len(handles) != len(nodes):
        raise CaptureError(
            "advance must be kernels one after another, got "
            f"{len(nodes)} of which {len(handles)} are"
        )
    return handles


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
        with network.launching():
            runtime.launch(self.loop)
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
            handles = chain(runtime.nodes(kernels.raw))
            # Places 0 and 1; the first kernel writes what the copy reads.
            loop.add_copy(self.progress.data_ptr(), index.data_ptr(), index.nbytes, [])
            loop.add_child(self.network.graph.raw, [])
            after = [0, 1]
            for handle in handles:
                after = [loop.add_kernel(handle, after)]
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
        # With the condition every step is an ordinary launch; the last one's value counts.
        for k in range(self.steps):
            self.network.state.step(k == 0, self.network.output, condition)
