"""The measure of a leak that the GPU's tests use, on a memory that is made up."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.growth import LEAST_ROUNDS, MOST_ROUNDS, least_growth


def measured(kept, others):
    """(growth as measured, rounds) of work that keeps so many bytes beside others' moves."""
    used, rounds = [10**9], []

    def work():
        used[0] += kept + others[len(rounds)]
        rounds.append(kept)

    return least_growth(work, lambda: used[0]), len(rounds)


taken = st.lists(st.integers(0, 10**8), min_size=MOST_ROUNDS, max_size=MOST_ROUNDS)


@given(kept=st.integers(1, 10**8), others=taken)
def test_a_leak_is_seen_whatever_others_take(kept, others):
    grown, rounds = measured(kept, others)
    assert grown >= kept and rounds == MOST_ROUNDS


@given(others=taken, quiet=st.integers(0, MOST_ROUNDS - 1))
def test_others_are_not_blamed_on_work_that_keeps_nothing(others, quiet):
    others[quiet] = 0
    grown, rounds = measured(0, others)
    assert grown == 0 and LEAST_ROUNDS <= rounds <= max(LEAST_ROUNDS, quiet + 1)
