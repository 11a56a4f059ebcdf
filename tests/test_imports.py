"""Imports run one way through the layers."""

import ast
import subprocess
import sys
from pathlib import Path

import adaptive_kernels

ROOT = Path(adaptive_kernels.__file__).parent
# A module may import from the rooms left of it; leaves import from no room at all.
LEAVES = [
    *["version", "plan", "metrics", "probe", "reference", "demo_model", "tradeoff", "store"],
    *["watch", "choice", "arguments", "identity"],
]
LAYERS = [
    *LEAVES,
    "config",
    "presets",
    "factorise",
    "levels",
    "schedule",
    "fills",
    "report",
    "triton_decide",
    "triton_step",
    "triton_kernels",
    "ops",
    "capability",
    "ahead",
    "runtime",
    "state",
    "network",
    "captured",
    "graph",
    "groups",
    "executors",
    "result",
    "sampler",
    "recording",
    "search",
    "trials",
    "calibration",
    "demo",
    "__main__",
]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            parts = node.module.split(".")
            if parts[0] == "adaptive_kernels":
                yield from parts[1:2] or [alias.name for alias in node.names]


def test_modules_import_only_from_the_layers_below():
    modules = {path.stem: path for path in ROOT.glob("*.py") if path.stem != "__init__"}
    assert set(modules) == set(LAYERS)
    for name, path in modules.items():
        below = [] if name in LEAVES else LAYERS[: LAYERS.index(name)]
        wrong = [other for other in imported(path) if other in LAYERS and other not in below]
        assert not wrong, f"{name} imports {wrong}"


def test_the_arithmetic_headers_know_no_torch():
    for header in ("step.h", "decide.h", "noise.h"):
        text = (ROOT.parent / "csrc" / header).read_text()
        assert "torch/" not in text
        assert "tensor.h" not in text


def test_importing_the_package_is_light():
    """Neither diffusers nor matplotlib is paid for by `import adaptive_kernels`."""
    script = "import sys, adaptive_kernels; print(*(m for m in sys.modules if '.' not in m))"
    got = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"diffusers", "matplotlib", "transformers", "PIL"} & set(got.stdout.split())
