"""The lines of a file of requests, each a JSON object."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What goes into a file's name.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Line:
    """A request as it stands in the file, or why it is none.

    number: of the line, from 1. id: its own, or the number with zeros before it.
    """

    number: int
    id: str
    fields: dict[str, Any]
    error: str = ""


def read_lines(path: Path) -> list[Line]:
    """Every line that is not empty; bad ones say why.

    Raises: OSError where the file cannot be read, ValueError where it holds no request.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OSError(f"requests must be a file of JSON lines, got {path}: {error}") from error
    found: list[Line] = []
    taken: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        one = _line(number, line)
        # On some file systems two names that differ by case are one.
        name = one.id.casefold()
        if not one.error and name in taken:
            error = f"id must be one request's, got {one.id!r} of line {taken[name]} again"
            one = Line(number, one.id, one.fields, error)
        taken.setdefault(name, number)
        found.append(one)
    if not found:
        raise ValueError(f"requests must hold a line for each request, got none in {path}")
    return found


def _line(number: int, text: str) -> Line:
    plain = f"{number:05d}"
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        return Line(number, plain, {}, f"a line must be a JSON object: {error}")
    if not isinstance(fields, dict):
        return Line(number, plain, {}, f"a line must be a JSON object, got {text.strip()[:40]}")
    own = fields.pop("id", plain)
    if isinstance(own, int) and not isinstance(own, bool):
        own = str(own)
    if not isinstance(own, str) or not _ID.fullmatch(own):
        error = f"id must be letters, digits, '.', '_' and '-', as it names a file, got {own!r}"
        return Line(number, plain, fields, error)
    return Line(number, own, fields)
