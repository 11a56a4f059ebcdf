"""Groups of one network call and its run, launched ahead by the host: graphs without conditions.

How many groups a sampling takes is decided on the device. With k groups under way since the host
last knew where the samples stood,

    another is certainly needed  if  k < max_b least(index_b),

where least(i) is the smallest number of groups from step i to the end. So the host never launches a
group too many, and waits for news only while what is under way may be all.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..rules.config import AdaptiveConfig
from ..rules.criteria import forced
from ..solvers.table import SolverTable
from .capture import CapturedNetwork
from .guard import CaptureError


class Group:
    """A group under way, and where the samples stand when it is over."""

    def __init__(self, mark: Any, index: Any):
        self._mark, self._index = mark, index

    def done(self) -> bool:
        """Whether it is over, without waiting."""
        return self._mark.done()

    def wait(self) -> list[int]:
        """Waits until it is over; [B] steps done by every sample then."""
        self._mark.wait()
        return self._index.tolist()


class Groups:
    """A captured network and a captured `advance`, replayed until every sample is at the end.

    Args:
        least: [T + 1] of `least_groups`.

    Raises: CaptureError.
    """

    def __init__(self, network: CapturedNetwork, least: Sequence[int]):
        self.network, self.least = network, least
        runtime, state = network.runtime, network.state
        # A row for every group that may be under way.
        self.progress = runtime.pinned((len(least), *state.index.shape))
        advance = None
        try:
            advance = runtime.capture(lambda: state.advance(network.output))
            # Only here may a process with a part of the GPU be told that blocks cannot run at once.
            advance.instantiate()
        except RuntimeError as error:
            if advance is not None:
                advance.close()
            raise CaptureError(f"advance could not be captured: {error}") from error
        self.advance = advance

    def run(self, bar: Any) -> int:
        """Launches the groups; returns how many."""
        runtime, launched = self.network.runtime, 0

        def launch() -> Group:
            nonlocal launched
            row = self.progress[launched]
            with self.network.launching():
                self.network.graph.replay()
                self.advance.replay()
                runtime.copy(row, self.network.state.index)
            launched += 1
            return Group(self.network.last, row)

        def learn(index: Sequence[int]) -> None:
            bar.update(sum(index) - bar.n)

        return run_ahead(launch, self.least, learn)

    def close(self) -> None:
        self.advance.close()


def least_groups(table: SolverTable, config: AdaptiveConfig) -> list[int]:
    """[T + 1]: the smallest number of groups from each step to the end."""
    least = [0] * (table.num_steps + 1)
    for i in reversed(range(table.num_steps)):
        least[i] = 1 + min(least[j] for j in _landings(table, config, i))
    return least


def _landings(table: SolverTable, config: AdaptiveConfig, start: int) -> list[int]:
    """Where the run of a network call at `start` may end: what csrc/core/decide.h forces."""
    rule, steps = config.rule(table), table.num_steps
    found = []
    for step in range(start + 1, steps):
        whole, within = divmod(step, rule.stages)
        skipped = (step - start - 1) // rule.stages
        if within:
            # The first call of a whole step is followed by its second.
            if step == start + 1:
                return [step]
            continue
        if forced(rule, whole, skipped) or (config.plan and config.plan.refresh[step]):
            return [*found, step]
        found.append(step)
    return [*found, steps]


def run_ahead(
    launch: Callable[[], Group],
    least: Sequence[int],
    learn: Callable[[Sequence[int]], None] = lambda index: None,
) -> int:
    """Launches groups until every sample is at the end; returns how many.

    Args:
        launch: starts the next group; they run one after another.
        least: [T + 1] of `least_groups`; every sample stands at step 0.
        learn: told the steps done by every sample, as they become known.
    """
    under_way, launched, needed = deque(), 0, least[0]

    def oldest() -> int:
        index = under_way.popleft().wait()
        learn(index)
        return max(least[i] for i in index)

    while needed:
        while under_way and under_way[0].done():
            needed = oldest()
        if len(under_way) < needed:
            under_way.append(launch())
            launched += 1
        elif under_way:
            needed = oldest()
    return launched
