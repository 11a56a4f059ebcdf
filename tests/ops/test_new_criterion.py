"""docs/adding-a-rule.md, walked through: a new criterion in a copy of the project.

It touches the places that the page names and no other; the copy is built for the CPU, and the
suites that hold all criteria to each other run on it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from tests.support.emulation.emulated import compiler

ROOT = Path(__file__).parents[2]
# calm: skip while the last step was no longer, in the mean, than `threshold` times the one before.
EDITS = {
    "csrc/core/decide.h": [
        ("  kPlan = 5\n", "  kPlan = 5,\n  kCalm = 6\n"),
        ("kCriteria = 6;", "kCriteria = 7;"),
        (
            "  return criterion == kReleased ? 4 :",
            "  if (criterion == kCalm) return 2;\n  return criterion == kReleased ? 4 :",
        ),
        (
            "  return criterion == kThirdOrder || criterion == kReleased;",
            "  return criterion == kThirdOrder || criterion == kReleased || criterion == kCalm;",
        ),
        (
            "  if (rule.criterion == kDefect)\n    return",
            "  if (rule.criterion == kCalm) {\n"
            "    const double limit = threshold * sums.first_1;\n"
            "    return {skipped >= rule.max_skip || !(sums.first <= limit),\n"
            "            ratio(sums.first, limit)};\n"
            "  }\n\n"
            "  if (rule.criterion == kDefect)\n    return",
        ),
    ],
    "adaptive_kernels/ops/triton/decide.py": [
        ("PLAN = tl.constexpr(criteria.PLAN)\n", "PLAN = tl.constexpr(criteria.PLAN)\nCALM = 6\n"),
        (
            "    if CRITERION == RELEASED:\n",
            "    if CRITERION == 6:\n"
            "        left, right = sums.first, threshold * sums.first_1\n"
            "        refresh = refresh | ~(left <= right)\n"
            "    if CRITERION == RELEASED:\n",
        ),
    ],
    "adaptive_kernels/ops/reference.py": [
        (
            "    elif criterion == RELEASED:\n",
            "    elif criterion == 6:\n"
            "        left, right = first, threshold * first_1\n"
            "        refresh = (skipped >= max_skip) | ~(left <= right)\n"
            "    elif criterion == RELEASED:\n",
        ),
    ],
    "adaptive_kernels/rules/criteria.py": [
        (
            "    # Its table decides;",
            '    "calm": Criterion(6, warmup=2, threshold=0.9, sums=frozenset({"first"})),\n'
            "    # Its table decides;",
        ),
    ],
    "tests/support/problems.py": [('REUSE = ["never", ', 'REUSE = ["calm", "never", ')],
}
# So that the suites spend their time on it: they ask for it alone, with its own fill and another.
ALONE = {
    "tests/support/problems.py": [
        ("# Every criterion that", 'RULES = ["calm", "calm linear repair"]\n# Every criterion that')
    ],
    "tests/support/agreement.py": [
        ("RULES = [*problems.REUSE, *problems.FILLED]", "RULES = problems.RULES")
    ],
    "tests/support/implementations.py": [("examples * implementation.share", "examples / 8")],
}
# The rows of the page that a criterion without a table of its own does not need.
BESIDES = {
    "adaptive_kernels/rules/fills.py",
    "tests/ops/test_decide.py",
    "benchmarks/fidelity/methods/ours.py",
}
RUN = """
import torch
from adaptive_kernels import AdaptiveConfig
from tests.support import problems

config = AdaptiveConfig(1.0, 3, "calm")
assert config.kind.code == 6 and config.resolved().warmup == 2
table = problems.table(30)
state = problems.state(table, 2, 40, config)
lengths, decided = [], 0
while int(state.index[0]) < 30:
    before = state.current()
    state.model_output.copy_(problems.outputs(state, int(state.index[0])))
    state.step(True)
    lengths.append((state.current() - before).abs().double().sum(1))
    step = len(lengths)
    if 2 <= step < 30:
        score = lengths[-1] / lengths[-2]
        assert torch.allclose(state.score[step].double(), score, rtol=1e-3), step
        calm = state.score[step] <= 1
        decided += int((calm & ~state.refreshed[step]).sum())
        assert not bool((~calm & ~state.refreshed[step]).any())
assert decided > 5, decided
print("decided", decided)
"""


def in_copy(copy, *arguments, timeout=600):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": str(copy), "CUDA_HOME": "/nowhere", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_page_names_the_files_that_are_touched():
    page = (ROOT / "docs/adding-a-rule.md").read_text()
    assert set(re.findall(r"^\| `([\w/.-]+)` \|", page, re.MULTILINE)) == {*EDITS, *BESIDES}


@pytest.mark.skipif(not compiler(), reason="needs a C++ compiler")
def test_a_new_criterion_is_held_to_all_claims(tmp_path):
    copy = tmp_path / "project"
    copytree(ROOT, copy, ignore=ignore_patterns(".*", "build", "*.so", "results", "__pycache__"))
    for name, edits in (*EDITS.items(), *ALONE.items()):
        path = copy / name
        text = path.read_text()
        for old, new in edits:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        path.write_text(text)
    in_copy(copy, "setup.py", "-q", "build_ext", "--inplace")
    assert "decided" in in_copy(copy, "-c", RUN)
    suites = (
        "tests/ops/test_fields.py",
        "tests/ops/test_contract.py",
        "tests/executors/test_groups.py",
    )
    words = "fields or facts or criteria or step or slot or bits or guard or group"
    said = in_copy(copy, "-m", "pytest", "-x", "-p", "no:cacheprovider", *suites, "-k", words)
    assert int(re.search(r"(\d+) passed", said)[1]) > 60, said[-300:]
