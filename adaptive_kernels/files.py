"""Files that are there whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden file to write, which takes the place of `path` if nothing is raised, or is gone."""
    hidden = path.with_name(f".{path.name}.unfinished")
    try:
        yield hidden
        if hidden.is_file():
            os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    """Write JSON so that the file is either the old one or the new one."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with replacing(path) as hidden:
        hidden.write_text(text)
