"""The house: imports run one way through the rooms, none is crowded, earlier names still work."""

import ast
import graphlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import adaptive_kernels as ak

PACKAGE = Path(ak.__file__).parent
PROJECT = PACKAGE.parent
# A room may import from those before it; rooms in one set not from each other.
ORDER = (
    {"version"},
    {"metrics", "files", "moved", "options", "pictures"},
    {"solvers"},
    {"rules"},
    {"ops"},
    {"sampling"},
    {"executors"},
    {"sampler"},
    {"calibration"},
    {"pipelines"},
    {"engine"},
    {"demo"},
    {"serve"},
    {"__main__"},
)
PLACE = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
COMPILED = {"_graph"}  # modules that import nothing
MOST = 10  # files of a room, beside its __init__.py


def modules():
    """{dotted name below the package: its file}, packages by the name of their folder."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name):
    """The modules of the package that a module imports, anywhere in it."""
    path = MODULES[name]
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = package[: len(package) - node.level + 1]
        elif node.module and node.module.split(".")[0] == "adaptive_kernels":
            base = []
        else:
            continue
        told = (node.module or "").split(".")
        base = [part for part in [*base, *told] if part not in ("", "adaptive_kernels")]
        for alias in node.names:
            if alias.name in COMPILED:
                continue
            whole = ".".join([*base, alias.name])
            yield whole if whole in MODULES else ".".join(base)


def test_completion_shows_the_public_names_alone():
    assert dir(ak) == sorted(ak.__all__)
    assert all(hasattr(ak, name) for name in ak.__all__)


def test_rooms_import_only_from_the_rooms_before_them():
    assert {name.split(".")[0] for name in MODULES} - {""} == PLACE.keys()
    for name in MODULES.keys() - {""}:
        room = name.split(".")[0]
        for other in imported(name):
            assert other, f"{name} imports from the package itself"
            there = other.split(".")[0]
            assert there == room or PLACE[there] < PLACE[room], f"{name} imports {other}"


def test_modules_of_a_room_import_one_way():
    """Whichever module of a room is read first, there is one to begin with."""
    graph = {
        # What a room gives to others is read last, and is not asked for from within.
        name: {other for other in imported(name) if other in MODULES}
        for name in MODULES
        if name
    }
    for name, others in graph.items():
        room = name.rpartition(".")[0]
        assert room not in others or not room, f"{name} imports its own room"
    list(graphlib.TopologicalSorter(graph).static_order())


def test_no_room_is_crowded_and_each_says_what_lives_there():
    rooms = [path.parent for path in PACKAGE.rglob("__init__.py")]
    assert len(rooms) > 7
    for room in rooms:
        files = [path for path in room.glob("*.py") if path.stem != "__init__"]
        assert len(files) <= MOST, f"{room.name} holds {len(files)} files"
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert said and "\n" not in said, f"{room.name} must say in one line what it holds"


def test_a_wheel_holds_every_room_and_nothing_beside():
    """The data in them: tests/rules/test_presets.py."""
    tools = pytest.importorskip("setuptools", reason="setuptools is not installed")
    project = pytest.importorskip("tomllib", reason="needs Python 3.11").loads(
        (PROJECT / "pyproject.toml").read_text()
    )["tool"]["setuptools"]
    find = project["packages"]["find"]
    assert find["namespaces"] is False
    rooms = {path.parent.relative_to(PROJECT) for path in PACKAGE.rglob("__init__.py")}
    packages = {*tools.find_packages(PROJECT, include=find["include"])}
    assert packages == {".".join(room.parts) for room in rooms}


def test_places_that_are_named_to_readers_exist():
    """In README and the docs, in sources, tests and benchmarks."""
    path = re.compile(r"\b(?:adaptive_kernels|csrc|tests|benchmarks|examples|docs)/[\w/.-]*\w")
    kinds = ("*.py", "*.h", "*.cpp", "*.cu", "*.sh")
    folders = ("adaptive_kernels", "csrc", "tests", "benchmarks", "examples")
    files = [
        *PROJECT.glob("*.md"),
        *PROJECT.glob("docs/*.md"),
        PROJECT / "Makefile",
        PROJECT / "setup.py",
    ]
    files += [
        file for folder in folders for kind in kinds for file in (PROJECT / folder).rglob(kind)
    ]
    named = {(file, name) for file in files for name in path.findall(file.read_text())}
    # LibTorch has a csrc of its own.
    named = {(file, name) for file, name in named if not name.startswith("csrc/stable")}
    missing = [f"{f.name}: {n}" for f, n in sorted(named) if not (PROJECT / n).exists()]
    assert len(named) > 60 and not missing, missing


def test_the_arithmetic_headers_know_no_torch():
    headers = [*(PROJECT / "csrc" / "core").glob("*.h")]
    assert len(headers) >= 4
    for header in headers:
        text = header.read_text()
        assert "torch/" not in text
        assert all('"core/' in line for line in text.splitlines() if line.startswith('#include "'))


def test_importing_the_package_is_light():
    """Neither diffusers nor matplotlib is paid for by `import adaptive_kernels`."""
    script = "import sys, adaptive_kernels; print(*(m for m in sys.modules if '.' not in m))"
    got = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"diffusers", "matplotlib", "transformers", "PIL"} & set(got.stdout.split())


@pytest.mark.parametrize(
    ("earlier", "name"),
    [
        ("state", "State"),
        ("demo_model", "load_demo_model"),
        ("config", "AdaptiveConfig"),
        ("plan", "Plan"),
        ("schedule", "SolverTable"),
        ("schedule", "UnsupportedSchedulerError"),
        ("levels", "NoiseLevels"),
        ("fills", "FillTables"),
        ("result", "SamplingResult"),
        ("solvers.drive", "Draw"),
    ],
)
def test_a_pickle_made_under_an_earlier_name_loads(earlier, name):
    """Its class is the one of now, and the word on it names where that is."""
    whole = f"adaptive_kernels.{earlier}"
    sys.modules.pop(whole, None)
    with pytest.warns(DeprecationWarning, match=rf"{whole} is adaptive_kernels\.[\w.]+ now"):
        found = pickle.loads(f"c{whole}\n{name}\n.".encode())
    assert found.__name__ == name and found.__module__ != whole
    assert name not in vars(ak) or getattr(ak, name) is found


def test_an_earlier_name_is_an_attribute_of_the_package():
    sys.modules.pop("adaptive_kernels.state", None)
    vars(ak).pop("state", None)
    with pytest.warns(DeprecationWarning, match="sampling.state now"):
        assert ak.state.State is ak.State
    with pytest.raises(AttributeError, match="'adaptive_kernels' has no attribute 'nowhere'"):
        ak.nowhere  # noqa: B018


def test_a_module_that_never_was_is_missed_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'adaptive_kernels\.nowhere'"):
        __import__("adaptive_kernels.nowhere")
