"""The engine without its tensors: every request once, in its order, and no slot empty too soon."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_kernels.engine.errors import EngineError, RequestError
from adaptive_kernels.engine.request import Entry, Queue, Request
from adaptive_kernels.engine.sample import Sample
from adaptive_kernels.engine.serving import serve


class Lengths:
    """Work that takes every request as many ticks as its seed says; less than 1: a bad request."""

    def __init__(self, queue, slots):
        self.queue, self.slots = queue, slots
        self.left, self.entries, self.admitted = {}, {}, []
        self.idle_with_queue = self.ticks = 0
        self.breaks_at = None

    def admit(self, slot, entry):
        assert 0 <= slot < self.slots and slot not in self.left
        if entry.item.seed < 1:
            raise ValueError(f"seed must be at least 1, got {entry.item.seed}")
        self.left[slot], self.entries[slot] = entry.item.seed, entry
        self.admitted.append(entry.number)

    def tick(self):
        assert self.left, "a tick for nobody"
        if self.ticks == self.breaks_at:
            raise OSError("broken")
        self.ticks += 1
        # Known to have ended: it was asked, and had none.
        self.idle_with_queue += len(self.left) < self.slots and not self.queue.over
        for slot in self.left:
            self.left[slot] -= 1
        done = [slot for slot, left in self.left.items() if not left]
        out = []
        for slot in done:
            del self.left[slot]
            entry = self.entries.pop(slot)
            sample = Sample(entry.id, entry.number, entry.item, nfe=entry.item.seed)
            out.append((slot, sample))
        return out


def failed(entry: Entry, error: Exception) -> Sample:
    return Sample(entry.id, entry.number, entry.item, error=error)


def run(lengths, slots, ordered=False, on_error="yield", requests=None):
    requests = [Request(seed=n) for n in lengths] if requests is None else requests
    work = Lengths(Queue(requests), slots)
    served = serve(work.queue, work, slots, ordered=ordered, on_error=on_error, failed=failed)
    return work, served


def test_every_request_comes_out_once_whatever_lengths_there_are():
    """Thousands of queues: order, fullness, and the ticks that a full batch needs."""
    draw = random.Random(0)
    for _ in range(3000):
        slots, count = draw.randint(1, 9), draw.randint(0, 30)
        longest = draw.choice((1, 2, 10, 50))
        bad = draw.choice((0.0, 0.0, 0.3))
        lengths = [0 if draw.random() < bad else draw.randint(1, longest) for _ in range(count)]
        ordered = draw.random() < 0.5
        work, served = run(lengths, slots, ordered)
        out = list(served)
        numbers = [sample.number for sample in out]
        assert sorted(numbers) == list(range(count))
        assert not ordered or numbers == sorted(numbers)
        good = [n for n, length in enumerate(lengths) if length]
        assert work.admitted == good, "requests are taken in queue order"
        assert {s.number for s in out if s.error is not None} == set(range(count)) - set(good)
        assert not work.idle_with_queue
        # List scheduling: full until the queue is dry, then as long as the last one takes.
        total = sum(lengths)
        assert total / slots <= work.ticks <= total / slots + max(lengths, default=0)


@settings(max_examples=200)
@given(st.lists(st.integers(1, 20), max_size=20), st.integers(1, 6), st.integers(0, 60))
def test_results_are_handed_out_before_a_failure_and_the_rest_is_named(lengths, slots, breaks_at):
    for ordered in (False, True):
        work, served = run(lengths, slots, ordered)
        work.breaks_at = breaks_at
        out, unfinished = [], []
        try:
            for sample in served:
                out.append(sample.number)
        except EngineError as error:
            unfinished = error.unfinished
            assert isinstance(error.__cause__, OSError) and "OSError: broken" in str(error)
        else:
            assert work.ticks <= breaks_at
        assert not ordered or out == sorted(out)
        assert sorted(out + unfinished) == sorted(work.admitted)
        if not unfinished:
            assert len(out) == len(lengths)


def test_a_bad_request_ends_the_run_once_all_before_it_are_out():
    requests = iter([Request(seed=n) for n in (3, 5, 0, 4, 2)])
    for ordered, before in ((False, [0, 1]), (True, [0, 1])):
        _, served = run(None, 4, ordered, "raise", requests)
        out = []
        with pytest.raises(RequestError, match="request 2: seed must be at least 1, got 0") as info:
            for sample in served:
                out.append(sample.number)
        assert out == before and info.value.id == 2 and isinstance(info.value.__cause__, ValueError)
        # What stands behind it was not taken.
        assert [request.seed for request in requests] == [4, 2]
        requests = iter([Request(seed=n) for n in (3, 5, 0, 4, 2)])


def test_bad_requests_without_end_come_out_one_by_one():
    _, served = run(None, 2, requests=(Request(seed=0, id=f"r{n}") for n in itertools.count()))
    assert [next(served).id for _ in range(5)] == ["r0", "r1", "r2", "r3", "r4"]


def test_an_iterable_that_raises_loses_nothing_that_was_taken():
    def requests():
        yield Request(seed=3)
        yield Request(seed=2)
        raise LookupError("gone")

    _, served = run(None, 4, requests=requests())
    out = []
    with pytest.raises(LookupError, match="gone"):
        for sample in served:
            out.append(sample.number)
    assert sorted(out) == [0, 1]


def test_none_is_no_request_yet_and_holds_nobody_up():
    given = [Request(seed=3), None, None, Request(seed=1), None]
    work, served = run(None, 2, requests=iter(given))
    out = list(served)
    assert sorted(sample.number for sample in out if sample is not None) == [0, 1]
    # Told at every tick that found the queue without one, and once it had nothing to do.
    assert out.count(None) == 3
    # The second one came after two ticks of the first, which went on meanwhile.
    assert work.ticks == 3


def test_nothing_is_taken_or_done_before_a_result_is_asked_for():
    taken = []

    def requests():
        for n in itertools.count():
            taken.append(n)
            yield Request(seed=5)

    work, served = run(None, 3, requests=requests())
    assert not taken
    next(served)
    assert len(taken) == 3 and work.ticks == 5
    next(served)
    assert len(taken) <= 5 and work.ticks == 5
