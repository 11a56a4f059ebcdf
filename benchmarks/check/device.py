"""What a result must name to be worth keeping: device, driver, versions, sources. Prints JSON.

    python -m benchmarks.check.device [--commit ID] [--served]

Exit code 1, with the reason in "problem", where no CUDA GPU is here, or with --served where the
compiled library does not serve it.
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def ask(*command: str) -> str | None:
    """What a program prints; None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


def sources() -> dict:
    """Digests of the sources, which name them where no git is."""
    digests = {}
    for name in ("csrc/**/*.h", "csrc/**/*.cu", "csrc/**/*.cpp", "adaptive_kernels/**/*.py"):
        digest = hashlib.sha256()
        for path in sorted(ROOT.glob(name)):
            digest.update(path.name.encode() + path.read_bytes())
        digests[name] = digest.hexdigest()[:16]
    return digests


def commit(given: str | None) -> dict:
    head, changed = ask("git", "rev-parse", "HEAD"), ask("git", "status", "--porcelain")
    return {
        "commit": given or head,
        "dirty": None if changed is None else bool(changed),
        "changed": (changed or "").splitlines()[:20],
        "sources": sources(),
    }


def smi(*fields: str) -> dict:
    line = ask("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0")
    values = [] if line is None else [value.strip() for value in line.split(",")]
    return dict(zip(fields, values, strict=len(values) == len(fields)))


def gpu() -> dict:
    """The GPU as torch sees it; "problem" is None where it can be used."""
    try:
        import torch
    except Exception as error:
        return {"problem": f"torch cannot be imported: {error}"}
    answers = {"torch": torch.__version__, "cuda": torch.version.cuda, "problem": None}
    if not torch.cuda.is_available():
        return {**answers, "problem": "no CUDA GPU is here: nothing is proven"}
    has = torch.cuda.get_device_properties(0)
    return {
        **answers,
        "device": has.name,
        "capability": f"{has.major}.{has.minor}",
        "multiprocessors": has.multi_processor_count,
        "memory_bytes": has.total_memory,
        "l2_bytes": has.L2_cache_size,
    }


def served() -> dict:
    """What serves each device, by the package itself."""
    try:
        from adaptive_kernels import ops

        return {"info": ops.info(), "serves": ops.implementation("cuda")[0]}
    except Exception as error:
        return {"info": {"error": f"{type(error).__name__}: {error}"}, "serves": None}


def facts(given: str | None = None) -> dict:
    try:
        import triton

        version = triton.__version__
    except Exception:
        version = None
    return {
        **gpu(),
        "triton": version,
        "python": platform.python_version(),
        **smi("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.limit"),
        "nvcc": (ask("nvcc", "--version") or "").split("\n")[-1] or None,
        **commit(given),
        **served(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--commit", help="where git cannot be asked")
    parser.add_argument("--served", action="store_true", help="the compiled library must serve")
    options = parser.parse_args()
    report = facts(options.commit)
    if options.served and report["problem"] is None and report["serves"] != "compiled CUDA":
        report["problem"] = f"CUDA tensors are served by {report['serves']}: see info"
    print(json.dumps(report, indent=1))
    return 0 if report["problem"] is None else 1


if __name__ == "__main__":
    sys.exit(main())
