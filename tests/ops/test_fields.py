"""The ops' fields and the criteria's facts: what Python says of them is what C++ says."""

import itertools
import json
import subprocess
from pathlib import Path

import pytest
import torch

from adaptive_kernels import ops
from adaptive_kernels.ops import fields
from adaptive_kernels.rules import criteria, defect
from adaptive_kernels.sampling.state import State
from adaptive_kernels.solvers.scheduler import MAX_HISTORY
from tests.support import problems
from tests.support.emulation.emulated import compiler

HERE = Path(__file__).parent
SIZES = dict(
    zip(
        ["R", "B", "N", "K", "M", "T", "P", "G", "Q"],
        [101, 103, 107, 109, 113, 127, 131, 137, 139],
        strict=True,
    )
)
TYPES = {
    "kFloat32": fields.FLOAT,
    "kFloat64": (torch.float64,),
    "kInt32": (torch.int32,),
    "kInt64": (torch.int64,),
    "kBool": (torch.bool,),
    "kNetworkType": fields.NETWORK,
    "kTimestepType": (torch.float32, torch.int64),
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """What a program says that includes the headers."""
    if not compiler():
        pytest.skip("needs a C++ compiler")
    program = tmp_path_factory.mktemp("facts") / "facts"
    csrc = HERE.parents[1] / "csrc"
    command = [compiler(), "-std=c++17", f"-I{csrc}", HERE / "facts.cpp", "-o", program]
    subprocess.run(command, check=True)
    return json.loads(subprocess.run([program], capture_output=True, text=True).stdout)


def test_the_fields_are_those_of_cpp(facts):
    known = SIZES | {"K - 1": SIZES["K"] - 1, f"{fields.SCALARS} + K": fields.SCALARS + SIZES["K"]}
    assert len(facts["fields"]) == len(fields.FIELDS)
    for field, (name, kind, written, optional, shape) in zip(
        fields.FIELDS, facts["fields"], strict=True
    ):
        assert field.name == name
        assert field.dtypes == TYPES[kind], name
        assert (field.written, field.optional) == (bool(written), bool(optional)), name
        assert [known.get(size, size) for size in field.shape] == shape, name
    assert [*facts["progress"]] == sorted(facts["progress"], key=facts["progress"].get)
    assert tuple(facts["progress"]) == fields.PROGRESS


def test_the_constants_are_those_of_cpp(facts):
    ours = {name: getattr(fields, name) for name in facts["constants"] if name != "MAX_HISTORY"}
    assert ours | {"MAX_HISTORY": MAX_HISTORY} == facts["constants"]


@pytest.mark.parametrize("op", [ops.step, ops.advance])
def test_the_registered_schema_is_made_of_the_fields(op):
    registered = op._schema.arguments
    assert tuple(a.name for a in registered[: len(fields.NAMES)]) == fields.NAMES
    for field, argument in zip(fields.FIELDS, registered, strict=False):
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        assert is_written == field.written, field.name
        assert str(argument.type).startswith("Optional") == field.optional, field.name
    scalars = [a.name for a in registered[len(fields.NAMES) :]]
    own = ["fresh"] * (op is ops.step)
    assert scalars == [*criteria.Rule._fields, *own, "condition"]
    assert tuple(fields.RULE) == criteria.Rule._fields


def test_the_criteria_are_those_of_cpp(facts):
    assert len(facts["criteria"]) == len(criteria.CRITERIA)
    assert sorted(criteria.NAME) == list(range(len(criteria.CRITERIA)))
    for code, (warmup, third, first, measured, table, runs) in enumerate(facts["criteria"]):
        one = criteria.of(code)
        assert one.warmup == warmup
        needed = {"third": third, "first": first, "defect": measured}
        assert one.sums == {name for name, is_needed in needed.items() if is_needed}
        assert one.needs_table == bool(table)
        grid = itertools.product(range(12), range(1, 4), (1, 7, 50))
        for (max_skip, stages, steps), (longest, *forced) in zip(grid, runs, strict=True):
            rule = criteria.Rule(code, max_skip, warmup, stages)
            what = (criteria.NAME[code], rule, steps)
            assert criteria.longest_run(rule, steps) == longest, what
            expected = [
                criteria.forced(rule, whole, skipped)
                for whole in range(1, 24)
                for skipped in range(min(whole, 14))
            ]
            assert expected == [bool(value) for value in forced], what


def test_the_noise_of_a_network_is_told_as_in_cpp(facts):
    """To the last place, NaN and Inf included, of noisy networks and others."""
    ours = [defect.DOUBT, defect.STANDS, defect.NOISE_COUNTS, defect.GROWS, defect.SHARES]
    assert ours == [float.fromhex(value) for value in facts["noise"]]
    lines = torch.tensor(
        [[float.fromhex(v) for v in (*line[:-1], *line[-1])] for line in facts["defects"]],
        dtype=torch.float64,
    )
    entry, table, before, square, most, expected = lines.split((8, 5, 6, 1, 1, 7), dim=1)
    got = defect.measure(before, entry, square[:, 0], most[:, 0])
    got = defect.kept(got, entry)
    got[:, defect.SHARE] = defect.share(got, entry)
    got = torch.cat((got, defect.predict(got, table)[:, None]), dim=1)
    # Not every square root of torch is the nearest number.
    assert torch.allclose(got, expected, rtol=5e-16, atol=0, equal_nan=True)
    # Shares between none and all of it, noise found, held back by the limit, and known before.
    share, variance = expected[:, defect.SHARE], expected[:, defect.VARIANCE]
    assert ((share > 0.1) & (share < 0.9)).sum() > 500
    for some in (variance == most[:, 0], variance == before[:, 1], share == 0):
        assert 100 < some.sum() < 3900


def test_every_field_is_documented_and_has_a_part():
    assert fields.document() in (HERE.parents[1] / "docs/ops.md").read_text()
    for field in fields.FIELDS:
        assert field.text.endswith(".")
        assert field.part in State.__annotations__
    state = problems.ready("defect", guided=True)
    for field in fields.FIELDS:
        value = getattr(state, field.name)
        if value is not None:
            assert value.dim() == len(field.shape) and value.dtype in field.dtypes, field.name


def test_arguments_are_bound_by_name():
    arguments = problems.ready().arguments()
    for op, own in (("step", {"fresh": True}), ("advance", {})):
        bound, more = fields.bind(op, arguments[:5], {**arguments._asdict(), **own})
        assert bound._fields == arguments._fields and bound.latents is arguments.latents
        assert more == {**own, "condition": None}
        with pytest.raises(TypeError, match=f"the arguments of {op} are latents, history"):
            fields.bind(op, arguments[:-1], own)
        with pytest.raises(TypeError, match=f"the arguments of {op} are latents, history"):
            fields.bind(op, arguments, {**own, "noize": None})
