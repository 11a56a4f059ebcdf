"""Ratios of one GPU benchmark run, and whether each aim of the project was met.

An aim is met if every case it speaks of was timed and is within it, missed if one is not within,
and unknown if none is known to miss it but not all were timed. A time too uncertain to tell on
which side of the limit it lies counts as not timed.
"""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.executors.overhead import planned

FIRST_SIZE = "SDXL"
# Networks of about SD-1.5's time.
SD15_SIZE = ("SD-1.5", "5 ms")


class Aim(NamedTuple):
    name: str
    text: str
    bound: str  # "at most" or "at least"
    limit: float
    speaks_of: Callable[[dict], bool]  # of a row of ratios, or of a loop
    value: Callable[[dict], float | None]


def key(row: dict) -> tuple[str, str, str]:
    return row["size"], row["op"], row["criterion"]


def times(bench: dict) -> dict[tuple, dict[str, float]]:
    """{case: {"implementation, how": microseconds of a launch}}."""
    found = {key(case): {} for case in bench.get("cases", [])}
    for row in bench.get("rows", []):
        if row.get("us"):
            found.setdefault(key(row), {})[f"{row['implementation']}, {row['how']}"] = row["us"]
    return found


def divide(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def ratios(bench: dict) -> list[dict]:
    """A row for every planned case: our time in a graph and what the others take in units of it.

    limit_us is what the case's bytes take at the rate of the large copy; call_times_* compare calls
    from Python on both sides.
    """
    bandwidth = (bench.get("ceilings") or {}).get("copy_GB_per_s")
    every, rows = times(bench), []
    for case in bench.get("cases", []):
        took = every[key(case)]
        ours, call = took.get("ours, graph"), took.get("ours, calls")
        limit = divide(case["bytes"] / 1e3, bandwidth)
        step = every.get((case["size"], "step", case["criterion"]), {}).get("ours, graph")
        rows.append(
            {
                **{name: case[name] for name in ("size", "op", "criterion", "bytes")},
                "us": ours,
                "graph_of_one_us": took.get("ours, graph of one"),
                "call_us": call,
                "limit_us": limit,
                "share_of_limit": divide(limit, ours),
                "times_copy": divide(took.get("copy, graph"), ours),
                "times_eager": divide(took.get("eager, calls"), ours),
                "times_compiled": divide(took.get("compiled, calls"), ours),
                "times_captured": divide(took.get("captured, graph"), ours),
                "times_triton": divide(took.get("triton, graph"), ours),
                "call_times_eager": divide(took.get("eager, calls"), call),
                "call_times_compiled": divide(took.get("compiled, calls"), call),
                "over_step": divide(ours, step) if case["op"] == "advance" else None,
            }
        )
    return rows


def _of(op: str, size: str | None = None, criterion: str | None = None) -> Callable[[dict], bool]:
    return lambda row: (
        row["op"] == op and size in (None, row["size"]) and criterion in (None, row["criterion"])
    )


# What prototypes of the kernels reached on an H100, and a little more.
FIRST_US = {
    ("step", "third_order"): 4.5,
    ("step", "defect"): 4.5,
    ("advance", "third_order"): 6.8,
    ("advance", "defect"): 5.2,
}
SHARES_OF_COPY = {
    ("Wan 720p", "step", "third_order"): 0.82,
    ("Wan 720p", "step", "defect"): 0.95,
    ("Wan 720p", "advance", "third_order"): 0.70,
    ("Wan 720p", "advance", "defect"): 0.82,
    ("SDXL x 64", "step", "third_order"): 0.82,
    ("SDXL x 64", "step", "defect"): 0.85,
    ("SDXL x 64", "advance", "third_order"): 0.70,
    ("SDXL x 64", "advance", "defect"): 0.76,
}


def _aims() -> list[Aim]:
    verdicts = [
        Aim(
            f"first_{op}_{criterion}_us",
            f"{FIRST_SIZE}, one image, {criterion}: microseconds of {op} in a graph",
            *("at most", limit, _of(op, FIRST_SIZE, criterion), lambda row: row["us"]),
        )
        for (op, criterion), limit in FIRST_US.items()
    ]
    verdicts += [
        Aim(
            f"{size.lower().replace(' ', '_')}_{op}_{criterion}_copy",
            f"{size}, {op}, {criterion}: share of the speed of a copy of the same bytes",
            *("at least", limit, _of(op, size, criterion), lambda row: row["times_copy"]),
        )
        for (size, op, criterion), limit in SHARES_OF_COPY.items()
    ]
    for op in ("step", "advance"):
        verdicts += [
            Aim(
                f"{op}_times_eager",
                f"every size: times the time of {op} that eager takes",
                *("at least", 50.0, _of(op), lambda row: row["times_eager"]),
            ),
            Aim(
                f"{op}_times_captured",
                f"every size: times the time of {op} that a captured torch.compile takes",
                *("at least", 1.2, _of(op), lambda row: row["times_captured"]),
            ),
        ]
    return verdicts


def _certain(number: str, error: str, limit: float) -> Callable[[dict], float | None]:
    def value(row: dict) -> float | None:
        known = row[number] is not None and abs(row[number] - limit) > row[error]
        return row[number] if known else None

    return value


def _loop_aims() -> list[Aim]:
    """Of the rows of executors/overhead.py."""
    per_tick, share = 15.0, 0.01
    return [
        Aim(
            "loop_overhead_us",
            "loops of networks of 0.2 to 20 ms: microseconds per tick beside plain replays",
            *("at most", per_tick, lambda row: row["kind"] == "stack"),
            _certain("overhead_us_per_tick", "overhead_error_us", per_tick),
        ),
        Aim(
            "loop_overhead_share",
            "loops at SD-1.5's size: share that is not the network's",
            "at most",
            share,
            lambda row: row["executor"] != "eager" and row["network"] in SD15_SIZE,
            _certain("overhead_share", "overhead_share_error", share),
        ),
        Aim(
            "loop_adaptive_gain",
            "26 of 50 calls over 50, as one graph: share of T / NFE gained",
            "at least",
            0.98,
            lambda row: row["executor"] == "graph" and row["pattern"] == "adaptive",
            lambda row: row["speedup_share"],
        ),
    ]


def _name(row: dict) -> str:
    return row.get("name") or f"{row['size']}, {row['criterion']}"


def judge(aim: Aim, rows: list[dict]) -> dict:
    spoken = [row for row in rows if aim.speaks_of(row)]
    values = {_name(row): aim.value(row) for row in spoken}
    known = {case: value for case, value in values.items() if value is not None}
    at_most = aim.bound == "at most"
    missed = [c for c, v in known.items() if not (v <= aim.limit if at_most else v >= aim.limit)]
    worst = (max if at_most else min)(known, key=known.get) if known else None
    verdict = "met"
    if missed:
        verdict = "missed"
    elif not known or len(known) < len(values):
        verdict = "unknown"
    return {
        "name": aim.name,
        "text": f"{aim.text}: {aim.bound} {aim.limit:g}",
        "verdict": verdict,
        "worst": None if worst is None else {"case": worst, "value": known[worst]},
        "missed_by": missed,
        "not_timed": [case for case in values if case not in known],
    }


def aims(bench: dict) -> list[dict]:
    """The verdict on every aim of the kernels."""
    rows = ratios(bench)
    return [judge(aim, rows) for aim in _aims()]


def engine_aims(engine: dict) -> list[dict]:
    """The verdict on every aim of the engine; rows of benchmarks/engine/gpu.py."""
    filled = Aim(
        "engine_share_of_filled",
        "the engine with networks of 5 ms: speed-up over T / mean NFE times the slots in use",
        *("at least", 0.93, lambda row: row["network"] == "5 ms" and row["way"] == "engine"),
        lambda row: row["share_of_filled"],
    )
    return [judge(filled, engine["rows"])]


def loop_aims(loop: dict) -> list[dict]:
    """The verdict on every aim of the loop."""
    rows = planned(loop)
    return [judge(aim, rows) for aim in _loop_aims()]
