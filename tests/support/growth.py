"""Whether work that is repeated keeps memory, on a device whose memory others use too."""

import statistics
from collections.abc import Callable

WINDOW, MOST_ROUNDS = 5, 16


def growth(work: Callable[[], None], used: Callable[[], int]) -> int:
    """Bytes that a round of work keeps: the median of five rounds in a row, the least there is.

    What the work itself keeps is kept in every round. What other processes take or give back moves
    some rounds: a median does not see it while most of five are quiet. Ends at the first five that
    keep nothing.

    Args:
        work: a round, long enough that what it keeps would be seen.
        used: bytes in use.
    """
    rounds, medians = [], []
    while len(rounds) < MOST_ROUNDS:
        before = used()
        work()
        rounds.append(used() - before)
        if len(rounds) >= WINDOW:
            medians.append(statistics.median(rounds[-WINDOW:]))
            if medians[-1] <= 0:
                break
    return min(medians)
