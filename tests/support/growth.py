"""Whether work that is repeated keeps memory, on a device whose memory others use too."""

from collections.abc import Callable

LEAST_ROUNDS, MOST_ROUNDS = 4, 12


def least_growth(work: Callable[[], None], used: Callable[[], int]) -> int:
    """Bytes that a round of work keeps: the least over rounds.

    What other processes take and give back moves some rounds; what the work itself keeps is kept
    in every one. Ends at the first quiet round, once enough work was done.

    Args:
        work: a round, long enough that what it keeps would be seen.
        used: bytes in use.
    """
    least = None
    for k in range(MOST_ROUNDS):
        before = used()
        work()
        grown = used() - before
        least = grown if least is None else min(least, grown)
        if k + 1 >= LEAST_ROUNDS and least <= 0:
            break
    return least
