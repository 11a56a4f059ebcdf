"""The fastest executor is found by measuring, and kept."""

from hypothesis import given
from hypothesis import strategies as st

from adaptive_kernels.executors.fastest import CLEARLY, Fastest


def sample(fastest, times, calls):
    taken = []
    for _ in range(calls):
        taken.append(fastest.next())
        fastest.took(taken[-1], times[taken[-1]] * 10, 10)
    return taken


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_both_are_tried_and_the_faster_one_kept(graph, groups):
    times = {"graph": graph, "groups": groups}
    fastest = Fastest(times)
    taken = sample(fastest, times, 9)
    assert taken[:4] == ["graph", "groups", "graph", "groups"]
    # Equal ones go to the preferred.
    right = "groups" if groups < CLEARLY * graph else "graph"
    assert set(taken[4:]) == {right} and not fastest.choosing
    assert "graph" in fastest.measured() and "groups" in fastest.measured()


def test_the_best_time_counts():
    """The first sampling also wakes the device, and others are interrupted."""
    fastest = Fastest(["graph", "groups"])
    for milliseconds in (9.0, 1.5, 1.0, 1.5):
        fastest.took(fastest.next(), milliseconds, 1)
    assert fastest.next() == "graph"


def test_a_single_name_is_never_measured_and_a_dropped_one_never_taken():
    alone = Fastest(["groups"])
    assert not alone.choosing and alone.next() == "groups" and alone.measured() == ""
    fastest = Fastest(["graph", "groups"])
    fastest.drop("graph")
    assert sample(fastest, {"groups": 1.0}, 3) == ["groups"] * 3 and not fastest.choosing
    fastest.drop("groups")
    assert fastest.names == []
