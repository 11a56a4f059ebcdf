"""What an enabled pipeline did in its last call: for people, for programs, as a picture."""

import math
from os import PathLike
from typing import Any

import torch

from ..pictures import decisions_picture as draw
from .enable import enabled
from .record import Record, Sampling


def summary(pipe: Any, as_dict: bool = False) -> str | dict[str, Any]:
    """What the last call of an enabled pipeline did.

    Network calls made and skipped, by network and by step, who asked for them, the time, and what
    was not done as asked and why. A guided call is one call.

    Args:
        pipe: a pipeline that `enable_adaptive` enabled.
        as_dict: gives the same as a dictionary of values that JSON takes, for a program.

    Returns: a text of some lines, or the dictionary.
    Raises: ValueError where the pipeline is not enabled.
    """
    standing = enabled(pipe)
    report = {
        "pipeline": type(pipe).__name__,
        "config": _config(standing.config),
        "generations": standing.generations,
        "calls": {"made": standing.made, "skipped": standing.skipped},
        "notes": list(standing.notes),
        "last": None if standing.last is None else _last(standing.last),
    }
    return report if as_dict else _text(report)


def decisions_picture(pipe: Any, path: str | PathLike) -> None:
    """Draws who refreshed when in the last call of an enabled pipeline: a line per sample.

    Args:
        pipe: a pipeline that `enable_adaptive` enabled, called at least once since.
        path: the PNG file to write.

    Raises: ValueError where there is nothing to draw.
    """
    record = enabled(pipe).last
    if record is None or not record.samplings:
        raise ValueError("pipe must have been called since it was enabled, got no steps to draw")
    sampling = record.samplings[-1]
    fresh = torch.tensor(sampling.fresh)[:, None].expand(-1, sampling.samples)
    made = sum(sampling.fresh)
    title = f"{record.pipeline}, {sampling.scheduler}: {made} of {len(sampling.fresh)} calls"
    draw(path, fresh, sampling.score(), title=title)


def _config(config: Any) -> dict[str, Any]:
    full = config.resolved()
    infinite = full.threshold == math.inf  # which JSON does not know
    return {
        "criterion": full.criterion,
        "threshold": None if infinite else full.threshold,
        "max_skip": full.max_skip,
        "warmup": full.warmup,
        "fill": full.fill,
    }


def _last(record: Record) -> dict[str, Any]:
    saved = None
    if record.seconds is not None:
        seconds, made = record.network_seconds, record.made
        saved = sum(seconds[n] / made[n] * k for n, k in record.skipped.items() if made[n])
    return {
        "config": _config(record.config),
        "networks": {
            name: {"made": record.made[name], "skipped": record.skipped[name]}
            for name in sorted({*record.made, *record.skipped})
        },
        "seconds": record.seconds,
        "seconds_saved": saved,
        "nothing_skipped": record.nothing_skipped(),
        "few_skipped": record.few_skips(),
        "notes": list(record.notes),
        "samplings": [_sampling(sampling) for sampling in record.samplings],
    }


def _sampling(sampling: Sampling) -> dict[str, Any]:
    score = [
        [value if math.isfinite(value) else None for value in row]
        for row in sampling.score().tolist()
    ]
    return {
        "scheduler": sampling.scheduler,
        "rule": _config(sampling.config),
        "notes": [*sampling.notes, *sampling.hints],
        "rows": sampling.rows,
        "done": len(sampling.fresh),
        "samples": sampling.samples,
        "fresh": list(sampling.fresh),
        "asked": sampling.asked(),
        "score": score,
        "reads": sampling.reads,
    }


def _text(report: dict[str, Any]) -> str:
    last = report["last"]
    if last is None:
        state = "; ".join(report["notes"]) or "enabled, not called yet"
        return f"{report['pipeline']}: {state} ({_rule(report['config'])})"
    lines = []
    for sampling in last["samplings"]:
        made, done, rows = sum(sampling["fresh"]), sampling["done"], sampling["rows"]
        ended = "" if done == rows else f"; ended after {done} of {rows} steps"
        if done < rows and last["seconds"] is None:
            ended = f"; at step {done} of {rows}"
        samples = f"{sampling['samples']} sample{'s' if sampling['samples'] > 1 else ''}"
        lines += [
            f"{report['pipeline']}, {sampling['scheduler']}, {samples}: {made} of {done} steps "
            f"called the network, {done - made} skipped it{ended}",
            f"  rule       {_rule(sampling['rule'])}",
            f"  steps      {''.join('#' if fresh else '.' for fresh in sampling['fresh'])}"
            "   (# called, . skipped)",
        ]
        # Who asked matters where there is more than one.
        if sampling["samples"] > 1 and sampling["asked"] is not None:
            lines += [
                f"  sample {b:<3} asked at {', '.join(map(str, asked)) or 'no step'}"
                for b, asked in enumerate(sampling["asked"])
            ]
        lines += [f"  note       {note}" for note in sampling["notes"]]
    if not last["samplings"]:
        lines.append(f"{report['pipeline']}: no step was seen")
    lines += [f"  note       {note}" for note in last["notes"]]
    for name, calls in last["networks"].items():
        lines.append(f"  {name:<10} {calls['made']} calls made, {calls['skipped']} skipped")
    if last["seconds"] is not None:
        time = f"  time       {last['seconds']:.2f} s in the loop"
        if saved := last["seconds_saved"]:
            whole = last["seconds"] + saved
            time += f"; about {whole:.2f} s with every call ({whole / last['seconds']:.2f}x)"
        lines.append(time)
    if last["nothing_skipped"]:
        lines.append(f"  nothing was skipped: {last['nothing_skipped']}")
    if last["few_skipped"]:
        lines.append(f"  {last['few_skipped']}")
    if report["config"] != last["config"]:
        lines.append(f"  next call  {_rule(report['config'])}")
    calls = report["calls"]
    if report["generations"] > 1:
        lines.append(
            f"  since enabled: {report['generations']} generations, {calls['made']} calls made, "
            f"{calls['skipped']} skipped"
        )
    return "\n".join(lines)


def _rule(config: dict[str, Any]) -> str:
    if config["criterion"] in ("never", "plan") or config["criterion"].startswith("every"):
        return f"{config['criterion']}, fill {config['fill']}"
    threshold = config["threshold"]
    if isinstance(threshold, float):
        threshold = f"{threshold:.3g}"
    return (
        f"{config['criterion']}, threshold {threshold}, max_skip {config['max_skip']}, "
        f"fill {config['fill']}"
    )
