"""Why a compiled library is not there: not built, or built where another folder hides it."""

import sys
from collections.abc import Iterable
from pathlib import Path

_HERE = Path(__file__).resolve().parent
ROOM = "ops"


def built(folder: Path, name: str) -> list[Path]:
    """The files of a compiled library in a folder."""
    return sorted(folder.glob(f"{name}.*.so"))


def why_missing(
    name: str, tool: str, folder: Path = _HERE, path: Iterable[str] | None = None
) -> str:
    """Why a folder of the ops has no compiled library of this name, and what helps.

    Args:
        name: of the library. tool: what an installation needs to compile it.
        folder: the ops' own. path: where Python looks for packages; None: sys.path.
    """
    package = folder.parent
    # Run from a checkout, its folder comes before what pip installed.
    for entry in sys.path if path is None else path:
        other = Path(entry or ".").resolve() / package.name
        if other != package and built(other / ROOM, name):
            return (
                f"not built in {package}, which hides the installed package in {other}: run from "
                f"another folder, or build it here with pip install -e {package.parent}"
            )
    if (package.parent / "setup.py").is_file():
        return (
            f"not built in the checkout {package.parent}: `make demo` or "
            f"`pip install -e {package.parent}` does it (needed: {tool})"
        )
    return f"not built: installing found no {tool} that works"
