"""Every request of a file sampled, one image each; what is there already stays."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..engine import EngineError, Request, Sample
from ..files import replacing
from ..rules.config import AdaptiveConfig
from .lines import Line
from .sources import Source

# Of the text in a PNG that says what it was made of.
KEY = "adaptive_kernels"


def serve_file(
    lines: list[Line], out: Path, source: Source, config: AdaptiveConfig, progress: bool = True
) -> dict[str, Any]:
    """Sample the requests of a file into DIR/<id>.png.

    An image says in its PNG text what it was made of; one of the same request and settings is not
    made again, so that a file that was interrupted goes on where it stood. A request that fails
    fails alone.

    Args:
        lines: of `read_lines`. out: folder, made if missing. source: what samples them.

    Returns: ``{"requests", "made", "kept": counts, "failed": [{"id", "line", "error"}], "error":
        what ended the run before its end or None, "report": of the engine, "out"}``.
    Raises: OSError where a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"out must be a folder that can be written, got {out}: {error}") from error
    settings = {**source.settings, "config": repr(config)}
    failed = [_failure(line, line.error) for line in lines if line.error]
    asked: list[tuple[Line, Request, str]] = []
    kept = made = 0
    for line in (line for line in lines if not line.error):
        try:
            made_of = _text(line, settings, source.folder)
            if _made_of(out / f"{line.id}.png") == made_of:
                kept += 1
            else:
                asked.append((line, source.request(line), made_of))
        except (TypeError, ValueError, OSError) as error:
            failed.append(_failure(line, str(error)))
    ended = None
    try:
        for line, made_of, sample in _samples(source, asked, progress):
            error = "the latents hold NaN or Inf" if sample.nonfinite else sample.error
            if error is not None:
                failed.append(_failure(line, str(error)))
                continue
            nfe = f"{sample.nfe} of {len(sample.refreshed)}"
            _save(out / f"{line.id}.png", source.image(sample), made_of, nfe)
            made += 1
    except EngineError as error:
        ended = str(error)
    return {
        "requests": len(lines),
        "made": made,
        "kept": kept,
        "failed": sorted(failed, key=lambda failure: failure["line"]),
        "error": ended,
        "report": source.engine.report(),
        "out": str(out),
    }


def _samples(
    source: Source, asked: list[tuple[Line, Request, str]], progress: bool
) -> Iterator[tuple[Line, str, Sample]]:
    # No bar, and no run, for nothing.
    if asked:
        for sample in source.run([request for _, request, _ in asked], progress):
            line, _, made_of = asked[sample.number]
            yield line, made_of, sample


def _text(line: Line, settings: dict[str, Any], folder: Path | None) -> str:
    """All that an image depends on; a picture that it begins with by its content."""
    told = {"request": line.fields, "settings": settings}
    name = line.fields.get("image")
    if folder is not None and isinstance(name, str) and (folder / name).is_file():
        told["image"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return json.dumps(told, sort_keys=True)


def _failure(line: Line, error: str) -> dict[str, Any]:
    return {"id": line.id, "line": line.number, "error": error}


def _made_of(path: Path) -> str | None:
    """What an image says that it was made of; None where it is none of ours, or none."""
    from PIL import Image

    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return getattr(image, "text", {}).get(KEY)
    except OSError:
        return None


def _save(path: Path, image: Any, made_of: str, nfe: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(KEY, made_of)
    text.add_text("nfe", nfe)
    with replacing(path) as hidden:
        image.save(hidden, format="png", pnginfo=text)
