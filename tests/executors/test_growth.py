"""The measure of a leak that the GPU's tests use, on a memory that is made up."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.growth import MOST_ROUNDS, WINDOW, growth

LOUD = (WINDOW - 1) // 2  # of five rounds in a row, at most so many are moved by others
others = st.integers(-(10**9), 10**9)


def measured(kept, moves):
    """(growth as measured, rounds) of work that keeps so many bytes beside others' moves."""
    used, rounds = [10**12], []

    def work():
        used[0] += kept + moves[len(rounds)]
        rounds.append(kept)

    return growth(work, lambda: used[0]), len(rounds)


def mostly_quiet(moves):
    """The moves, with quiet rounds between them, so that most of any five are quiet."""
    return [move if k % WINDOW < LOUD else 0 for k, move in enumerate(moves)]


moves = st.lists(others, min_size=MOST_ROUNDS, max_size=MOST_ROUNDS)


@given(kept=st.integers(1, 10**8), moves=moves)
def test_a_leak_is_seen_whatever_others_take_and_give_back(kept, moves):
    assert measured(kept, mostly_quiet(moves)) == (kept, MOST_ROUNDS)


@given(moves=moves)
def test_others_are_not_blamed_on_work_that_keeps_nothing(moves):
    assert measured(0, mostly_quiet(moves)) == (0, WINDOW)


@given(taken=st.lists(st.integers(1, 10**9), min_size=MOST_ROUNDS, max_size=MOST_ROUNDS))
def test_work_that_keeps_nothing_goes_on_until_others_are_quiet(taken):
    quiet = [*taken[: MOST_ROUNDS - WINDOW], *[0] * WINDOW]
    grown, rounds = measured(0, quiet)
    assert grown == 0 and rounds > WINDOW
