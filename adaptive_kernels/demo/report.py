"""A comparison of samplers in words: the table, and who is closest to the full run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

# A method whose two best rounds differ by more was disturbed in all or all but one of them.
SCATTER = 1.2
HEADINGS = ("method", "NFE mean", "min", "max", "wall s", "speed-up", "PSNR dB", "worst", "SSIM")


def table(report: Mapping) -> str:
    """The methods of a report as a Markdown table, padded so that it also reads as plain text.

    Args:
        report: `{"methods": {name: {...}}}` as `run_demo` returns it. None (a PSNR that is
            infinite) and the full run's comparison with itself are shown as a dash; speed-ups of
            rounds that scatter have a ~ before them.

    Raises:
        KeyError: a method lacks one of the numbers.
    """
    rows = [HEADINGS]
    about = "~" if scattered(report) else ""
    for name, m in report["methods"].items():
        quality = [(m["psnr_db"], 2), (m["psnr_db_worst_tenth"], 2), (m["ssim"], 4)]
        rows.append(
            (
                name,
                f"{m['nfe_mean']:.2f}",
                str(m["nfe_min"]),
                str(m["nfe_max"]),
                f"{m['wall_s']:.2f}",
                f"{about}{m['speedup']:.2f}x",
                *("-" if v is None or name == "full" else f"{v:.{d}f}" for v, d in quality),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ("-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])))
    lines = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scattered(report: Mapping) -> bool:
    """Whether the best rounds of some method differ by more than an idle machine's do."""
    return report.get("settings", {}).get("scatter", 1.0) > SCATTER


def of_times(report: Mapping) -> list[str]:
    """What there is to know of a report's times, in sentences: they scatter, threads spin.

    Raises: KeyError where the settings lack one of the facts.
    """
    settings, said = report["settings"], []
    if scattered(report):
        said.append(
            f"~ times scatter: the two best rounds of {settings['scatter_of']} are "
            f"{settings['scatter'] - 1:.0%} apart; the machine is busy, and speed-ups are not to "
            "be relied on (more --rounds find two that agree)"
        )
    elif settings["rounds"] == 1:
        said.append("one round: nothing tells how far times scatter (--rounds 2 and more do)")
    if settings["omp_wait_policy"] != "PASSIVE":
        policy = settings["omp_wait_policy"]
        said.append(
            f"OMP_WAIT_POLICY is {policy or 'not set'}: OpenMP's threads may spin while they wait, "
            "which slows them many times over beside other programs"
        )
    return said


def verdict(report: Mapping, method: str = "defect") -> str:
    """One sentence, computed from a report, on who is closest to the full run at equal NFE.

    Whoever's mean NFE is within 5 % or half a call of the method's takes part; two fixed patterns
    on either side of it do as one, PSNR interpolated linearly in log NFE. Less than 0.1 dB of mean
    PSNR apart is a draw.

    Args:
        report: `{"methods": {name: {"nfe_mean", "psnr_db", ...}}}` with "full" and `method`; a
            "psnr_db" of None is infinite.
        method: the method whose NFE is the measure.

    Raises:
        KeyError: the report lacks "full", `method` or one of the numbers.
    """
    points = {
        name: (m["nfe_mean"], math.inf if m["psnr_db"] is None else m["psnr_db"])
        for name, m in report["methods"].items()
    }
    nfe = points[method][0]
    if nfe >= points.pop("full")[0]:
        return f"{method} skipped nothing, so there is nothing to compare at equal NFE."
    patterns = sorted((name for name in points if name.startswith("every(")), key=points.get)
    for few, many in itertools.pairwise(patterns):
        if points[few][0] < nfe < points[many][0]:
            (nfe0, db0), (nfe1, db1) = points.pop(few), points.pop(many)
            share = math.log(nfe / nfe0) / math.log(nfe1 / nfe0)
            points[f"{few}-{many} interpolated"] = (nfe, db0 + share * (db1 - db0))
            break
    near = [name for name in points if abs(points[name][0] - nfe) <= max(0.05 * nfe, 0.5)]
    near.sort(key=lambda name: -points[name][1])
    figures = ", ".join(f"{n} {points[n][1]:.2f} dB (NFE {points[n][0]:.1f})" for n in near)
    if len(near) == 1:
        return f"Nothing else ran at the NFE of {figures}."
    lead = points[near[0]][1] - points[near[1]][1]
    # Two infinite PSNRs differ by NaN, which is a draw too.
    result = f"{near[0]} is best by {lead:.1f} dB" if lead >= 0.1 else "the first two draw"
    return f"At an NFE of about {nfe:.1f}, {result}: {figures}."
