"""benchmarks/compare.py: what fails a run, what only warns, and what is no benchmark file."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare.py"


def bench(implementation, median, **info):
    extra = {"implementation": implementation, "bytes_moved": 4096, "operator_calls": 1}
    extra |= {"torch": "2.11.0", "diffusers": "0.36.0", **info}
    name = f"test_step[small-{implementation}]"
    return {"name": name, "group": "small", "stats": {"median": median}, "extra_info": extra}


@pytest.fixture
def run():
    ratios = {"share_of_memcpy": 0.5, "times_eager": 12.0, "times_compiled": 4.0}
    return {
        "benchmarks": [bench("step", 1e-5, **ratios), bench("eager", 1.2e-4, operator_calls=30)]
    }


@pytest.fixture
def compare(tmp_path, run):
    """compare(new, *flags): compares with the run, as a user does: (exit code, out, err)."""

    def call(new, *flags):
        paths = [tmp_path / "new.json", tmp_path / "stored.json"]
        for path, content in zip(paths, (new, run), strict=True):
            if content is not None:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        command = [sys.executable, SCRIPT, *paths, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def changed(run):
    """changed(index, **info): the run with the extra_info of one benchmark altered."""

    def change(index, **info):
        new = copy.deepcopy(run)
        new["benchmarks"][index]["extra_info"].update(info)
        return new

    return change


def test_an_equal_run_passes(compare, run):
    code, out, err = compare(run)
    assert (code, err) == (0, "")
    assert "small" in out and "12.00 (12.00)" in out and out.endswith("are as stored\n")
    assert "warning" not in out


@pytest.mark.parametrize("key", ["bytes_moved", "operator_calls"])
def test_what_is_deterministic_must_not_change(compare, changed, key):
    code, out, _ = compare(changed(0, **{key: 8192}))
    assert code == 1
    assert f"difference: test_step[small-step]: {key} is 8192, was" in out


def test_operators_of_a_baseline_may_change_with_its_library(compare, changed):
    assert compare(changed(1, operator_calls=31))[0] == 1
    assert compare(changed(1, operator_calls=31, torch="2.15.0"))[0] == 0
    assert compare(changed(0, operator_calls=31, torch="2.15.0"))[0] == 1


def test_a_slower_run_warns(compare, changed):
    code, out, _ = compare(changed(0, times_eager=8.9, times_compiled=3.1))
    assert code == 0
    assert "warning: test_step[small-step]: times_eager is 8.90, was 12.00" in out
    assert "times_compiled is" not in out


def test_a_missing_benchmark_fails_and_a_new_one_warns(compare, run):
    new = {"benchmarks": [run["benchmarks"][0], bench("other", 1.0)]}
    code, out, _ = compare(new)
    assert code == 1
    assert "difference: test_step[small-eager]: missing" in out
    assert "warning: test_step[small-other]: not in the stored run" in out


def test_a_part_of_the_stored_run_is_compared_alone(compare, run):
    part = {"benchmarks": [copy.deepcopy(run["benchmarks"][0])]}
    assert compare(part)[0] == 1
    assert compare(part, "--part")[0] == 0
    part["benchmarks"][0]["extra_info"]["bytes_moved"] = 1
    assert compare(part, "--part")[0] == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is not JSON"),
        ("[]", "is no benchmark file"),
        ('{"benchmarks": [{"name": "x"}]}', "is no benchmark file: KeyError('extra_info')"),
        ('{"benchmarks": []}', "holds no benchmarks"),
    ],
)
def test_a_broken_file_is_named(compare, content, reason):
    code, out, err = compare(content)
    assert (code, out) == (2, "")
    assert err.startswith("compare.py: ") and "new.json: " + reason in err
    assert "Traceback" not in err


def test_json_holds_the_same(compare, changed):
    code, out, _ = compare(changed(0, bytes_moved=1, times_eager=1.0), "--json")
    result = json.loads(out)
    assert code == 1
    assert [len(result[key]) for key in ("differences", "warnings", "rows")] == [1, 1, 1]
    assert result["rows"][0]["stored_times_eager"] == 12.0
