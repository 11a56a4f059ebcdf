"""Compares a benchmark run with a stored one.

    python benchmarks/compare.py NEW.json STORED.json [--part] [--json]

What is deterministic must not change: exit code 1 when a benchmark is missing or its bytes moved
or operator calls differ. Times are another matter: a ratio that moved by more than 25 % warns.
With --part the new run may leave benchmarks out.
Exit code 2: a file is missing or is no benchmark file.
"""

import argparse
import json
import sys
from pathlib import Path

DETERMINISTIC = ("bytes_moved", "operator_calls")
RATIOS = ("share_of_memcpy", "times_eager", "times_compiled")
TOLERANCE = 0.25
# Operators that a call of these dispatches are the libraries' own and change with them.
BASELINES = ("eager", "compiled", "memcpy")
LIBRARIES = ("torch", "diffusers")


class BrokenFileError(Exception):
    """The file is missing or holds no benchmarks; the message says which and why."""


def read(bench: dict) -> dict:
    """The case, the median in seconds and the extra_info of a benchmark, as one dict."""
    info = bench["extra_info"]
    missing = [key for key in ("implementation", *DETERMINISTIC) if key not in info]
    if missing:
        raise ValueError(f"{bench['name']} has no {' and no '.join(missing)} in extra_info")
    return {**info, "case": bench["group"], "median": float(bench["stats"]["median"])}


def load(path: str) -> dict[str, dict]:
    """What `read` makes of a pytest-benchmark JSON file, by the test's name."""
    try:
        benchmarks = json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]
        found = {bench["name"]: read(bench) for bench in benchmarks}
    except OSError as error:
        raise BrokenFileError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise BrokenFileError(f"{path}: is not JSON: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFileError(f"{path}: is no benchmark file: {error!r}") from error
    if not found:
        raise BrokenFileError(f"{path}: holds no benchmarks")
    return found


def comparable(key: str, new: dict, stored: dict) -> bool:
    own = new["implementation"] not in BASELINES
    same = all(new.get(library) == stored.get(library) for library in LIBRARIES)
    return key != "operator_calls" or own or same


def differences(new: dict[str, dict], stored: dict[str, dict]) -> list[str]:
    """What must be equal and is not."""
    found = [f"{name}: missing" for name in stored if name not in new]
    for name in stored.keys() & new.keys():
        now, then = new[name], stored[name]
        found += [
            f"{name}: {key} is {now.get(key)}, was {then.get(key)}"
            for key in DETERMINISTIC
            if comparable(key, now, then) and now.get(key) != then.get(key)
        ]
    return sorted(found)


def warnings(new: dict[str, dict], stored: dict[str, dict]) -> list[str]:
    """Ratios of the op that moved, and benchmarks that no stored result speaks of."""
    found = [f"{name}: not in the stored run" for name in new if name not in stored]
    for name in stored.keys() & new.keys():
        now, then = new[name], stored[name]
        if now["implementation"] in BASELINES:
            continue
        for key in RATIOS:
            if key in now and key in then and abs(now[key] - then[key]) > TOLERANCE * then[key]:
                found.append(f"{name}: {key} is {now[key]:.2f}, was {then[key]:.2f}")
    return sorted(found)


def rows(new: dict[str, dict], stored: dict[str, dict]) -> list[dict]:
    """The op's results, one row per case."""
    table_rows = []
    for name, now in new.items():
        if now["implementation"] in BASELINES:
            continue
        row = {"case": now["case"], "us": now["median"] * 1e6, "GB_per_s": now.get("GB_per_s")}
        for key in RATIOS:
            row[key], row[f"stored_{key}"] = now.get(key), stored.get(name, {}).get(key)
        table_rows.append(row)
    return table_rows


def table(table_rows: list[dict]) -> str:
    """The rows as text: each ratio now, and in parentheses in the stored run."""
    titles = ("memcpy's rate", "x eager", "x compiled")
    lines = [f"{'case':<44}{'us':>10}{'GB/s':>8}" + "".join(f"{t:>18}" for t in titles)]
    for row in table_rows:
        line = f"{row['case']:<44}{row['us']:>10.1f}{number(row['GB_per_s']):>8}"
        for key in RATIOS:
            both = f"{number(row[key])} ({number(row['stored_' + key])})"
            line += f"{both:>18}"
        lines.append(line)
    return "\n".join(lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("new", metavar="NEW.json")
    parser.add_argument("stored", metavar="STORED.json")
    parser.add_argument("--part", action="store_true", help="the new run is a part of the stored")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    options = parser.parse_args(arguments)
    try:
        new, stored = load(options.new), load(options.stored)
    except BrokenFileError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    if options.part:
        stored = {name: stored[name] for name in stored if name in new}
    result = {
        "differences": differences(new, stored),
        "warnings": warnings(new, stored),
        "rows": rows(new, stored),
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(table(result["rows"]))
        for kind in ("warnings", "differences"):
            for line in result[kind]:
                print(f"{kind.removesuffix('s')}: {line}")
        print(
            "differs in what must be equal"
            if result["differences"]
            else "bytes moved, operator calls and benchmarks are as stored"
        )
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
