"""Groups of one network call and its run, launched ahead by the host: graphs without conditions."""

from collections.abc import Sequence
from typing import Any

from .ahead import run_ahead
from .captured import CapturedNetwork
from .watch import CaptureError


class _Group:
    """A group under way, and where the samples stand when it is over."""

    def __init__(self, mark: Any, index: Any):
        self._mark, self._index = mark, index

    def done(self) -> bool:
        return self._mark.done()

    def wait(self) -> list[int]:
        self._mark.wait()
        return self._index.tolist()


class Groups:
    """A captured network and a captured `advance`, replayed until every sample is at the end.

    Args:
        least: [T + 1] of `ahead.least_groups`.

    Raises: CaptureError.
    """

    def __init__(self, network: CapturedNetwork, least: Sequence[int]):
        self.network, self.least = network, least
        runtime, state = network.runtime, network.state
        # A row for every group that may be under way.
        self.progress = runtime.pinned((len(least), *state.index.shape))
        try:
            self.advance = runtime.capture(lambda: state.advance(network.output))
        except RuntimeError as error:
            raise CaptureError(f"advance could not be captured: {error}") from error

    def run(self, bar: Any) -> int:
        """Launches the groups; returns how many."""
        runtime, launched = self.network.runtime, 0

        def launch() -> _Group:
            nonlocal launched
            self.network.graph.replay()
            self.advance.replay()
            row = self.progress[launched]
            runtime.copy(row, self.network.state.index)
            self.network.last = runtime.mark()
            launched += 1
            return _Group(self.network.last, row)

        def learn(index: Sequence[int]) -> None:
            bar.update(sum(index) - bar.n)

        return run_ahead(launch, self.least, learn)

    def close(self) -> None:
        self.advance.close()
