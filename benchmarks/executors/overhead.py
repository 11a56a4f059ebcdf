"""The arithmetic of loop.py's rows: what a loop costs beside its network, and what it gains.

    overhead per tick = (time of the loop - ticks x time of a plain replay of its network) / ticks

A tick is a network call and everything until the next one.
"""

import math
import statistics

FULL = "full"


def title(case: dict) -> str:
    return f"{case['network']}, {case['executor']}, {case['pattern']}"


def timing(seconds: list[float]) -> dict:
    """Median and quartiles of rounds, in microseconds."""
    low, _, high = statistics.quantiles(seconds, n=4)
    middle = statistics.median(seconds)
    return {
        "us": middle * 1e6,
        "low_us": low * 1e6,
        "high_us": high * 1e6,
        "rounds": len(seconds),
    }


def overhead(loops: list[float], replays: list[float], ticks: int) -> dict:
    """What a loop takes beside plain replays of its network.

    Args:
        loops: seconds of the whole loop, a number per round.
        replays: seconds of `ticks` replays one behind the other, in the same rounds.
    """
    loop, plain = statistics.median(loops), statistics.median(replays)
    extra = [(a - b) / ticks * 1e6 for a, b in zip(loops, replays, strict=True)]
    low, _, high = statistics.quantiles(extra, n=4)
    # Of a median, about: 1.25 sigma / sqrt(rounds), and the quartiles are 1.35 sigma apart.
    error = (high - low) / math.sqrt(len(extra))
    per_tick = (loop - plain) / ticks * 1e6
    share = ticks * 1e-6 / loop
    return {
        "launch_us": loop * 1e6,
        "replay_us": plain / ticks * 1e6,
        "overhead_us_per_tick": per_tick,
        "overhead_error_us": error,
        "overhead_share": per_tick * share,
        "overhead_share_error": error * share,
    }


def compare(rows: list[dict]) -> None:
    """Adds to every timed row of one network what it gains over the full run of its executor."""
    full = {row["executor"]: row for row in rows if row["pattern"] == FULL and row.get("us")}
    for row in rows:
        base = full.get(row["executor"])
        if not row.get("us"):
            continue
        row["steps_over_nfe"] = row["steps"] / row["nfe"]
        row["speedup"] = base["us"] / row["us"] if base else None
        # Of the calls saved, how much the time has gained.
        row["speedup_share"] = row["speedup"] / row["steps_over_nfe"] if base else None


def planned(loop: dict) -> list[dict]:
    """A row for every planned case of a run: as it was timed, or with None for its numbers."""
    blank = dict.fromkeys(
        (
            *("us", "ticks", "nfe", "launch_us", "replay_us", "speedup", "steps_over_nfe"),
            *("overhead_us_per_tick", "overhead_error_us", "overhead_share"),
            *("overhead_share_error", "speedup_share"),
        )
    )
    rows = {row["name"]: row for row in loop.get("rows", [])}
    return [{**blank, **case, **rows.get(case["name"], {})} for case in loop.get("cases", [])]
