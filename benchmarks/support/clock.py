"""How benchmarks take times: by CUDA events and graph replays, or on a CPU by the host's clock.

A round is what stands between two events. Rounds are put into the stream one behind the other, and
the host waits for none but the last, so that the GPU goes from one to the next without a gap;
what a round must find as it was is put back before its first event.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

LEAST_ROUNDS, MOST_ROUNDS = 7, 200


class Timing(NamedTuple):
    us: float  # median time of a launch
    low_us: float  # quartiles
    high_us: float
    rounds: int
    launches: int  # of a round


class Clock:
    """Times calls on a CPU."""

    device = "cpu"
    cache_bytes = 32 << 20

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """What makes the call again; on a GPU, a graph's replay."""
        return call

    def rounds(self, call: Callable, calls: int, reset: Callable, count: int) -> list[float]:
        """Seconds of `count` rounds of call(0) .. call(calls - 1)."""
        seconds = []
        for _ in range(count):
            reset()
            began = time.perf_counter()
            for k in range(calls):
                call(k)
            seconds.append(time.perf_counter() - began)
        return seconds

    def wait(self) -> None:
        """Until the device has done all it was given."""

    def measure(
        self,
        call: Callable[[int], None],
        calls: int,
        *,
        launches: int = 1,  # of a call
        reset: Callable[[], None] = lambda: None,
        seconds: float = 0.12,  # to spend, about
    ) -> Timing:
        """Median and quartiles over rounds of `calls` calls, per launch."""
        self.rounds(call, calls, reset, 2)
        self.wait()
        began = time.perf_counter()
        self.rounds(call, calls, reset, 1)
        self.wait()
        once = max(time.perf_counter() - began, 1e-6)
        count = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(seconds / once)))
        times = [s * 1e6 / (calls * launches) for s in self.rounds(call, calls, reset, count)]
        low, middle, high = statistics.quantiles(times, n=4)
        return Timing(middle, low, high, count, calls * launches)


class CudaClock(Clock):
    """Times calls on the current CUDA device."""

    device = "cuda"

    def __init__(self):
        self.cache_bytes = torch.cuda.get_device_properties().L2_cache_size

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def rounds(self, call: Callable, calls: int, reset: Callable, count: int) -> list[float]:
        def event() -> torch.cuda.Event:
            return torch.cuda.Event(enable_timing=True)

        events = [(event(), event()) for _ in range(count)]
        for began, ended in events:
            reset()
            began.record()
            for k in range(calls):
                call(k)
            ended.record()
        self.wait()
        return [began.elapsed_time(ended) * 1e-3 for began, ended in events]

    def wait(self) -> None:
        torch.cuda.synchronize()


def clock(device: str) -> Clock:
    return CudaClock() if device == "cuda" else Clock()


def interleaved(
    turns: dict[str, Callable[[], float]],
    seconds: float,  # to spend, about
    least: int = 3,
    most: int = MOST_ROUNDS,
) -> dict[str, list[float]]:
    """What every turn returned, a list of rounds; a round takes each turn once.

    What warms or slows a device meets all turns alike, and every other round runs backwards, so
    that none of them always follows the same one.
    """
    found, count = {name: [] for name in turns}, 1
    names, began = list(turns), time.perf_counter()
    done = 0
    while done < count:
        for name in names if done % 2 == 0 else reversed(names):
            found[name].append(turns[name]())
        done += 1
        if done == 1:
            once = max(time.perf_counter() - began, 1e-6)
            count = min(most, max(least, int(seconds / once)))
    return found


def ceilings(clock: Clock, copy_bytes: int = 1 << 30, launches: int = 40) -> dict:
    """The two limits of any kernel here: bytes per second of a large copy, cost of a launch.

    The copy counts bytes read and bytes written. No kernel does less than one that adds 1 to one
    element: its time in a graph of many is what a launch costs there.
    """
    # Zeros can move faster than real data.
    source = torch.randint(256, (copy_bytes,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copied = clock.measure(lambda k: target.copy_(source), 1, seconds=0.3)
    if not torch.equal(source, target):
        raise AssertionError("a copy is not equal to its source")
    one = torch.zeros(1, device=clock.device)

    def many() -> None:
        for _ in range(launches):
            one.add_(1)

    many()
    several, single = clock.capture(many), clock.capture(lambda: one.add_(1))
    return {
        "copy_GB_per_s": 2 * copy_bytes / copied.us / 1e3,
        "copy_bytes": 2 * copy_bytes,
        "least_kernel_in_graph_us": clock.measure(lambda k: several(), 1, launches=launches).us,
        "least_graph_replay_us": clock.measure(lambda k: single(), launches).us,
        "least_call_us": clock.measure(lambda k: one.add_(1), launches).us,
    }
