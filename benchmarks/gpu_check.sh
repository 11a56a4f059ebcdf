#!/usr/bin/env bash
# One command on a machine with an NVIDIA GPU, torch 2.11 or newer, nvcc, pytest and hypothesis:
# builds in place, runs `pytest -m gpu`, writes $OUT/gpu_check.json (default: bench/) with device,
# driver, torch and commit, goes on after a failure and ends with what failed.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-bench}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
failed=()

"$PYTHON" setup.py build_ext --inplace > "$OUT/build.log" 2>&1 || failed+=("build")
PYTHONPATH=. "$PYTHON" -m pytest -m gpu tests/test_gpu.py --junitxml="$OUT/gpu_tests.xml" \
  > "$OUT/gpu_tests.log" 2>&1 || failed+=("tests")
tail -n 15 "$OUT/gpu_tests.log"

PYTHONPATH=. FAILED="${failed[*]:-}" "$PYTHON" - "$OUT" << 'PYTHON_END' || failed+=("report")
import json, os, subprocess, sys
import xml.etree.ElementTree as xml
from pathlib import Path

import torch

from adaptive_kernels import ops

out = Path(sys.argv[1])
suite = xml.parse(out / "gpu_tests.xml").getroot().find("testsuite")


def ask(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return f"{command[0]} is not here"


report = {
    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    "driver": ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    "torch": torch.__version__,
    "commit": ask("git", "rev-parse", "HEAD"),
    "tests": {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")},
    "failed": os.environ["FAILED"].split(),
    "info": ops.info(),
}
(out / "gpu_check.json").write_text(json.dumps(report, indent=2) + "\n")
print(json.dumps({k: report[k] for k in ("device", "torch", "commit", "tests")}))
if report["device"] is None or report["tests"]["skipped"]:
    sys.exit("no GPU was used: nothing is proven")
PYTHON_END

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]} (logs in $OUT)"
  exit 1
fi
echo "all passed"
