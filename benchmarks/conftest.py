"""What the benchmarks share: timing in turns, and ratios in the JSON."""

import gc
import itertools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.support.machine import cpu_model

ROUND_SECONDS = 0.002
# A busy machine gets fewer rounds, so that its run ends too.
MOST_ROUNDS, LEAST_ROUNDS, CASE_SECONDS = 61, 11, 4.0

STATISTICS = ("min", "max", "mean", "stddev", "median", "iqr", "rounds", "iterations")


class Rounds(NamedTuple):
    call: Callable[[], None]
    calls: int  # per round
    seconds: list[float]  # of all calls of a round


def seconds_of(call: Callable[[], None], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def rounds_in_turn(runners: dict[str, Callable[[], None]]) -> dict[str, Rounds]:
    """Times every runner in rounds of at least one call, the runners taking turns."""
    results = {}
    for name, call in runners.items():
        once = min(seconds_of(call, 1) for _ in range(5))
        results[name] = Rounds(call, max(1, round(ROUND_SECONDS / once)), [])
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(MOST_ROUNDS):
            if done >= LEAST_ROUNDS and time.perf_counter() - start > CASE_SECONDS:
                break
            for call, calls, seconds in results.values():
                # Wakes the threads and brings back what the runner before has displaced.
                call()
                seconds.append(seconds_of(call, calls))
    finally:
        gc.enable()
    return results


class OperatorCalls(TorchDispatchMode):
    """Counts the operators that reach a kernel."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operator_calls(call: Callable[[], None]) -> int:
    with OperatorCalls() as mode:
        call()
    return mode.count


@pytest.fixture
def one_thread():
    """torch computes on one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def take_turns() -> Callable[[dict[str, Callable[[], None]]], dict[str, Rounds]]:
    return rounds_in_turn


@pytest.fixture
def count_operators() -> Callable[[Callable[[], None]], int]:
    return operator_calls


class Replay:
    """A timer for pytest-benchmark that shows durations measured before.

    pytest-benchmark runs its benchmarks one after the other; the implementations of a case must
    take turns instead, or their ratio is that of two moments of the machine.
    """

    __name__ = "replay"
    readings = iter(())

    def __call__(self) -> float:
        return next(self.readings)


TIMER = Replay()


def pytest_collection_modifyitems(items):
    for item in items:
        if "replay" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=TIMER))


@pytest.fixture
def replay(benchmark):
    """replay(rounds): gives rounds timed before to pytest-benchmark."""

    def record(rounds: Rounds):
        TIMER.readings = itertools.chain.from_iterable((0.0, s) for s in rounds.seconds)
        benchmark.pedantic(lambda: None, rounds=len(rounds.seconds), iterations=rounds.calls)

    return record


def pytest_configure(config):
    path = config.getoption("benchmark_json")
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def pytest_benchmark_generate_machine_info():
    # Without the host's name and build paths: a stored result names a kind of machine.
    return {
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python_version": platform.python_version(),
    }


def pytest_benchmark_update_commit_info(commit_info):
    for key in ("project", "branch"):
        commit_info.pop(key, None)


def pytest_benchmark_update_json(output_json):
    """Adds rates and ratios, which need the other benchmarks of a group; drops what is bulky."""
    medians = {}
    for bench in output_json["benchmarks"]:
        implementation = bench["extra_info"]["implementation"]
        medians.setdefault(bench["group"], {})[implementation] = bench["stats"]["median"]
    for bench in output_json["benchmarks"]:
        # pytest-benchmark's options did not time these rounds; the parameters are in extra_info.
        del bench["options"], bench["params"]
        bench["stats"] = {key: bench["stats"][key] for key in STATISTICS}
        info, median = bench["extra_info"], bench["stats"]["median"]
        info["device"] = output_json["machine_info"]["cpu"]
        info["commit"] = output_json["commit_info"]["id"]
        info["GB_per_s"] = info["bytes_moved"] / median / 1e9
        others = medians[bench["group"]]
        for name, key in (
            ("memcpy", "share_of_memcpy"),
            ("eager", "times_eager"),
            ("compiled", "times_compiled"),
            ("own", "times_own"),
            ("plain", "times_plain"),
        ):
            if name in others:
                info[key] = others[name] / median
