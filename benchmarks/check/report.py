"""Puts gpu_check.json together from what the parts of gpu_check.sh left, and says what failed.

    python -m benchmarks.check.report --out DIR --device FILE [--only PARTS] NAME:STATUS:SECONDS ...

STATUS is a part's exit code, or "skipped", with the reason in place of the seconds. Every field is
there whatever is missing; what could not be read says why, and a part that nobody asked for is
empty. Exit code 1 if anything failed. An aim that was missed is no failure, nor is a case or a
sanitizer that time did not reach: "left_out" names them.
"""

import argparse
import json
import re
import sys
import xml.etree.ElementTree as xml
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.check.aims import aims, engine_aims, loop_aims, ratios
from benchmarks.executors.overhead import planned

# Parts that leave results behind.
RESULTS = ("tests", "loop", "engine", "benchmarks")
# Results with rows, and what a line of them is called by.
TIMED = (("loop", "loop"), ("engine", "engine"), ("benchmarks", "benchmark"))
LATE = "no time was left"
SANITIZERS = ("memcheck", "racecheck", "initcheck")
CODES = {"124": "ran out of time", "137": "ran out of time and was killed", "127": "is not here"}


def parts(given: list[str]) -> list[dict]:
    rows = []
    for one in given:
        name, status, detail = one.split(":", 2)
        skipped = status == "skipped"
        rows.append(
            {
                "name": name,
                "verdict": "skipped" if skipped else "passed" if status == "0" else "failed",
                "why": detail if skipped else CODES.get(status, f"exit code {status}"),
                "seconds": None if skipped else int(detail),
            }
        )
    return rows


def tests(path: Path) -> dict:
    """Counts of the suites in a junit file, the reasons of skips and the failures by name."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    failed, reasons = [], {}
    for suite in xml.parse(path).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    for case in xml.parse(path).getroot().iter("testcase"):
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                message = (found.get("message") or "").split("\n")[0][:300]
                failed.append(f"{case.get('classname')}::{case.get('name')}: {message}")
        for found in case.iter("skipped"):
            why = found.get("message") or ""
            reasons[why] = reasons.get(why, 0) + 1
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return {**counts, "passed": passed, "failed": failed, "skip_reasons": reasons}


def sanitizers(out: Path, done: list[dict], asked: Sequence[str]) -> dict:
    """What each tool of compute-sanitizer said last, in the log of its name."""
    by_tool = {}
    for tool in (tool for tool in SANITIZERS if tool in asked):
        part = next((p for p in done if p["name"] == tool), None)
        log = out / f"{tool}.log"
        said = log.read_text(errors="replace") if part and log.exists() else ""
        summaries = re.findall(r"[A-Z ]*SUMMARY: .*", said)
        by_tool[tool] = {
            "verdict": part["verdict"] if part else "not reached",
            "why": part["why"] if part else None,
            "summary": summaries[-1].strip() if summaries else None,
        }
    return by_tool


def read(path: Path) -> dict:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    return content


def attempt(make: Callable[[], Any], otherwise: Any = None) -> Any:
    """make(), or why it could not be made."""
    try:
        return make()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"} if otherwise is None else otherwise


def failures(report: dict, asked: Sequence[str], named: Sequence[str]) -> list[str]:
    """What failed, a line each.

    Args:
        asked: the parts that must have results. named: those that must run, whatever is here.
    """
    device = report["device"]
    found = [f"device: {device[why]}" for why in ("problem", "error") if device.get(why)]
    reached = {part["name"]: part["verdict"] for part in report["parts"]}
    for part in report["parts"]:
        # The device's problem says more than their exit codes.
        if part["verdict"] == "failed" and not (found and part["name"] in ("device", "library")):
            found.append(f"{part['name']}: {part['why']}")
    for part in report["parts"]:
        if part["name"] in (*asked, *named) and part["verdict"] == "skipped":
            found.append(f"{part['name']}: {part['why']}")
    for name in asked:
        if name not in reached:
            found.append(f"{name}: not reached")
        elif "error" in report[name] and reached[name] != "skipped":
            found.append(f"{name}: no results: {report[name]['error']}")
    found += [f"test {line}" for line in report["tests"].get("failed", [])]
    if report["tests"].get("passed") == 0:
        found.append("tests: none passed")
    for name, word in TIMED:
        found += [f"{word} {line}" for line in report[name].get("failed", [])]
        if report[name].get("rows") == [] and not report[name].get("skipped"):
            found.append(f"{name}: nothing was timed")
    return found


def left_out(report: dict) -> list[str]:
    """What time did not reach, a line each."""
    late = [p["name"] for p in report["parts"] if p["verdict"] == "skipped" and p["why"] == LATE]
    for name, word in TIMED:
        late += [f"{word} {case}" for case in report[name].get("not_begun", [])]
    return late


def build(out: Path, device: Path, given: list[str], only: Sequence[str] = ()) -> dict:
    """The report of the parts `only`, which must all have run; () is of all of them."""
    asked = [name for name in RESULTS if name in (only or RESULTS)]

    def of(name: str, make: Callable[[], Any]) -> Any:
        return attempt(make) if name in asked else {}

    done = attempt(lambda: parts(given), [])
    bench = of("benchmarks", lambda: read(out / "bench.json"))
    loop = of("loop", lambda: read(out / "loop.json"))
    engine = of("engine", lambda: read(out / "engine.json"))
    report = {
        "device": attempt(lambda: read(device)),
        "parts": done,
        "tests": of("tests", lambda: tests(out / "tests.xml")),
        "sanitizers": attempt(lambda: sanitizers(out, done, only or SANITIZERS)),
        "ceilings": bench.get("ceilings"),
        "ratios": attempt(lambda: ratios(bench), []),
        "aims": [
            *(attempt(lambda: aims(bench), []) if "benchmarks" in asked else []),
            *(attempt(lambda: loop_aims(loop), []) if "loop" in asked else []),
            *(attempt(lambda: engine_aims(engine), []) if "engine" in asked else []),
        ],
        "benchmarks": bench,
        "loop": loop,
        "engine": engine,
    }
    return {
        "failed": failures(report, asked, only),
        "left_out": attempt(lambda: left_out(report)),
        **report,
    }


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(title: str, names: list[str], rows: list[dict], columns: tuple[str, ...]) -> list[str]:
    if not rows:
        return []
    lines = [f"{title:<34}" + "".join(f"{c.replace('overhead_', ''):>15}" for c in columns)]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:<34}" + "".join(f"{number(row[c]):>15}" for c in columns))
    return lines


def in_words(report: dict) -> str:
    """A short table: every case, every aim, what failed."""
    kernels = [row for row in report["ratios"] if row["us"]]
    loops = attempt(lambda: [row for row in planned(report["loop"]) if row["us"]], [])
    columns = ("us", "share_of_limit", "times_copy", "times_eager", "times_compiled", "over_step")
    names = [f"{row['size']}, {row['op']}, {row['criterion']}" for row in kernels]
    lines = table("in a graph", names, kernels, columns)
    columns = ("us", "ticks", "replay_us", "overhead_us_per_tick", "speedup", "speedup_share")
    lines += table("samplings", [row["name"] for row in loops], loops, columns)
    engines = attempt(lambda: list(report["engine"]["rows"]), [])
    columns = ("samples_per_second", "speed_up", "bound", "share_of_bound", "share_of_filled")
    lines += attempt(
        lambda: table("engine", [row["name"] for row in engines], engines, columns), []
    )
    for aim in report["aims"] if kernels or loops or engines else []:
        worst = aim["worst"] or {"value": None, "case": "nothing timed"}
        lines.append(
            f"{aim['verdict']:>8}: {aim['text']} ({number(worst['value'])}: {worst['case']})"
        )
    for part in report["parts"]:
        if part["verdict"] == "skipped":
            lines.append(f" skipped: {part['name']}: {part['why']}")
    if passed := report["tests"].get("passed"):
        lines.append(f"   tests: {passed} of {report['tests']['tests']} passed")
    lines += [f"left out: {line}" for line in report["left_out"]]
    for name, why in attempt(lambda: dict(report["loop"]["skipped"]), {}).items():
        lines.append(f" skipped: loop of {name}: {why}")
    lines += [f"  failed: {line}" for line in report["failed"]] or ["  failed: nothing"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", type=Path, required=True, metavar="FILE")
    parser.add_argument("--name", default="gpu_check.json", help="of the report in DIR")
    parser.add_argument("--only", default="", metavar="PARTS", help="with commas; else all")
    parser.add_argument("--quiet", action="store_true", help="write the file alone")
    parser.add_argument("parts", nargs="*", metavar="NAME:STATUS:SECONDS")
    options = parser.parse_args(arguments)
    only = [name for name in options.only.split(",") if name]
    report = build(options.out, options.device, options.parts, only)
    path = options.out / options.name
    path.write_text(json.dumps(report, indent=1) + "\n")
    if not options.quiet:
        print(in_words(report))
        print(f"all of it: {path}")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
