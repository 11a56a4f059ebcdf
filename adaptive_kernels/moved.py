"""Modules under the names they had before they stood in folders, for code and pickles made then."""

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

# Those that the documentation named, and those of the classes that people pickle.
MOVED = {
    "config": "rules.config",
    "demo_model": "demo.model",
    "fills": "rules.fills",
    "levels": "solvers.levels",
    "plan": "rules.plan",
    "result": "sampling.result",
    "schedule": "solvers",
    "solvers.drive": "solvers.reading.noise",
    "state": "sampling.state",
}
PACKAGE = __package__


def _below(name: str) -> str:
    """A module's name below the package."""
    return name.removeprefix(f"{PACKAGE}.")


class Moved:
    """Finds and loads a module under its earlier name, with a word on where it is now."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, Moved) if _below(name) in MOVED else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        now = f"{PACKAGE}.{MOVED[_below(module.__name__)]}"
        warnings.warn(f"{module.__name__} is {now} now", DeprecationWarning, stacklevel=2)
        target = importlib.import_module(now)
        module.__dict__.update((k, v) for k, v in vars(target).items() if not k.startswith("__"))


def attribute(name: str) -> ModuleType:
    """The package's attribute of an earlier name, as importing that module once made it."""
    if name not in MOVED:
        raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
    return importlib.import_module(f"{PACKAGE}.{name}")


def install() -> None:
    """Makes the earlier names importable; asked last, after every other way to find a module."""
    if Moved not in sys.meta_path:
        sys.meta_path.append(Moved)
