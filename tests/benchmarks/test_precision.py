"""The rules of the table of half precision are the ones that its rows name."""

import re

import pytest

from benchmarks.fidelity.problem import shipped
from benchmarks.precision import rules


@pytest.mark.parametrize("solver", ["ddim", "flow"])
def test_every_row_runs_the_rule_it_names(solver):
    found = rules(shipped(solver, 50, 1, limit=False))
    assert len(found) == len({(rule.name, rule.setting) for rule in found}) > 10
    for rule in found:
        named = {"full": "never"}.get(rule.name, re.split(r"[,+]", rule.name.split(" ")[0])[0])
        assert rule.config.criterion == named, rule.name
        if rule.config.threshold is not None and named in ("defect", "third_order", "released"):
            assert rule.config.threshold == rule.setting, rule.name
        assert (rule.config.fill == "linear") == ("+linear" in rule.name)
