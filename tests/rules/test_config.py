"""A config is valid, frozen and complete, or it raises by name."""

import dataclasses

import numpy as np
import pytest

from adaptive_kernels import AdaptiveConfig
from adaptive_kernels.rules.criteria import CRITERIA
from adaptive_kernels.rules.plan import Plan

PLAN = Plan(
    "X",
    (9.0, 8.0, 7.0, 5.0, 1.0),
    (True, True, False, False, True),
    ((1.0, 0.0, 0.0), *((0.5, 0.5, 0.0),) * 3, (1.0, 0.0, 0.0)),
)


def test_defaults_are_the_criterions_own():
    assert AdaptiveConfig().criterion == "third_order"
    assert AdaptiveConfig().resolved().warmup == 3
    released = AdaptiveConfig(criterion="released").resolved()
    assert (released.threshold, released.warmup, released.max_skip) == (0.01, 4, 4)
    assert AdaptiveConfig(criterion="every(3)").resolved().max_skip == 2
    assert AdaptiveConfig(criterion="every(3)").rule(stages=2) == (1, 2, 1, 2, False)
    assert released.resolved() == released


def test_frozen_hashable_and_replaceable():
    config = AdaptiveConfig(0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.threshold = 1.0
    assert dataclasses.replace(config, max_skip=2) == AdaptiveConfig(0.3, 2)
    assert len({config, AdaptiveConfig(0.3)}) == 1
    # Defaults follow the criterion, they do not stick to the config they were first read from.
    other = dataclasses.replace(AdaptiveConfig(), criterion="released")
    assert other.resolved() == AdaptiveConfig(criterion="released").resolved()


def test_numbers_of_numpy_are_numbers():
    config = AdaptiveConfig(np.float32(0.5), np.int64(2))
    assert config.resolved() == AdaptiveConfig(0.5, 2).resolved()


def test_fills_belong_to_their_criteria():
    defect = AdaptiveConfig(criterion="defect").resolved()
    assert (defect.fill, defect.warmup, defect.max_skip, defect.threshold) == (
        *("linear", 3, 4),
        CRITERIA["defect"].threshold,
    )
    assert defect.repair is None and AdaptiveConfig.recommended() == AdaptiveConfig(
        criterion="defect"
    )
    assert AdaptiveConfig().resolved().fill == "reuse"
    assert AdaptiveConfig(fill="linear").resolved().warmup == 3
    linear = AdaptiveConfig(criterion="every(3)", fill="linear")
    assert (linear.resolved().warmup, linear.resolved().max_skip) == (2, 2)
    assert AdaptiveConfig(criterion="never", fill="linear").resolved().warmup == 1
    assert AdaptiveConfig(criterion="every(3)", fill="linear", warmup=1).resolved().warmup == 1
    assert AdaptiveConfig(criterion="released", fill="linear").resolved().warmup == 4
    assert AdaptiveConfig(criterion="every(16)", fill="linear", repair=True).resolved().repair
    planned = AdaptiveConfig(criterion="plan", plan=PLAN, max_skip=9).resolved()
    assert (planned.fill, planned.warmup, planned.max_skip) == ("fitted", 1, 2)
    assert AdaptiveConfig(0.5, 3, "defect").rule(2) == (4, 3, 3, 2, False)
    assert planned.rule() == (5, 2, 1, 1, False)
    assert planned.resolved() == planned and len({planned, planned.resolved()}) == 1


def test_a_plan_counts_its_calls():
    assert (PLAN.calls, PLAN.max_skip) == (3, 2)
    given_lists = Plan("X", [9, 8, 7, 5, 1], list(PLAN.refresh), [list(w) for w in PLAN.weights])
    assert given_lists == PLAN and hash(given_lists) == hash(PLAN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.solver = "Y"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"refresh": (False, True, True, True, True)},
            ValueError,
            "plan.refresh must call the network at the first step, got False",
        ),
        ({"refresh": (1, 0, 0, 0, 0)}, TypeError, "plan.refresh must be a sequence of bool, got "),
        ({"refresh": "yes"}, TypeError, "plan.refresh must be a sequence of bool, got 'yes'"),
        (
            {"refresh": (True,) * 4},
            ValueError,
            r"an entry per timestep \(5\), got 4 and 5",
        ),
        ({"timesteps": ()}, ValueError, r"an entry per timestep \(0\), got 5 and 5"),
        ({"timesteps": (5, 4, 3, 2, "1")}, TypeError, "plan.timesteps must hold numbers, got "),
        ({"timesteps": (5, 4, 3, 2, True)}, TypeError, "plan.timesteps must hold numbers, got "),
        (
            {"timesteps": (5, 4, 3, 2, float("nan"))},
            ValueError,
            r"plan.timesteps must be finite, got \(5, 4, 3, 2, nan\)",
        ),
        ({"solver": None}, TypeError, "plan.solver must be a str, got NoneType"),
        ({"weights": 3}, TypeError, "plan.weights must be a sequence, got int"),
        ({"updates": 3}, TypeError, "plan.updates must be a sequence, got int"),
        (
            {"updates": ((1.0, 2.0, 0.0),) * 4},
            ValueError,
            "plan.updates must be three numbers for each of 5 steps, got ",
        ),
        ({"weights": (1.0,) * 5}, TypeError, "plan.weights must hold numbers, got 1.0"),
        (
            {"weights": ((1.0, 0.0),) * 5},
            ValueError,
            r"plan.weights must be three numbers per step, got \(1.0, 0.0\)",
        ),
        (
            {"weights": ((1.0, 0.0, float("inf")),) * 5},
            ValueError,
            r"plan.weights must be finite, got \(1.0, 0.0, inf\)",
        ),
    ],
)
def test_refusals_of_a_plan(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(PLAN, **changes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": -0.1}, ValueError, "threshold must be at least 0 and fit float32, got -0.1"),
        (
            {"threshold": float("nan")},
            ValueError,
            "threshold must be at least 0 and fit float32, got nan",
        ),
        ({"threshold": "0.1"}, TypeError, "threshold must be a float, got str"),
        ({"threshold": True}, TypeError, "threshold must be a float, got bool"),
        ({"max_skip": -1}, ValueError, "max_skip must be at least 0 .*, got -1"),
        ({"threshold": 1e300}, ValueError, "threshold must be at least 0 and fit float32, got 1e"),
        ({"threshold": 10**400}, ValueError, "threshold must be at least 0 and fit float32"),
        ({"max_skip": 2**63}, ValueError, "max_skip must be .* at most 2147483647, got 9"),
        ({"criterion": "every(99999999999)"}, ValueError, "criterion must be"),
        ({"max_skip": 1.5}, TypeError, "max_skip must be an int, got float"),
        ({"max_skip": 0, "criterion": "released"}, ValueError, "max_skip must be at least 1"),
        ({"warmup": 2}, ValueError, "warmup must be at least 3 .*, got 2"),
        ({"warmup": 3, "criterion": "released"}, ValueError, "warmup must be at least 4 .*, got 3"),
        ({"criterion": "every(0)"}, ValueError, r"criterion must be .*got 'every\(0\)'"),
        ({"criterion": "sometimes"}, ValueError, "criterion must be .*got 'sometimes'"),
        ({"criterion": 3}, ValueError, "criterion must be .*got 3"),
        (
            {"fill": "cubic"},
            ValueError,
            "fill must be one of 'reuse', 'linear', 'fitted', got 'cubic'",
        ),
        (
            {"fill": "reuse", "criterion": "defect"},
            ValueError,
            "fill must be 'linear' for criterion 'defect', got 'reuse'",
        ),
        (
            {"fill": "linear", "criterion": "plan", "plan": PLAN},
            ValueError,
            "fill must be 'fitted' for criterion 'plan', got 'linear'",
        ),
        ({"fill": "fitted"}, ValueError, "fill 'fitted' needs criterion 'plan', got 'third_order'"),
        (
            {"fill": "linear", "max_skip": 16},
            ValueError,
            "max_skip must be at most 15 with fill 'linear', got 16",
        ),
        (
            {"criterion": "defect", "max_skip": 99},
            ValueError,
            "max_skip must be at most 15 with fill 'linear', got 99",
        ),
        (
            {"criterion": "every(17)", "fill": "linear"},
            ValueError,
            "k must be at most 16 with fill 'linear', got 17",
        ),
        ({"repair": 1, "criterion": "defect"}, TypeError, "repair must be a bool or None, got int"),
        ({"repair": True}, ValueError, "repair needs fill 'linear', got fill 'reuse'"),
        (
            {"repair": True, "criterion": "plan", "plan": PLAN},
            ValueError,
            "repair needs fill 'linear', got fill 'fitted'",
        ),
        ({"warmup": 2, "criterion": "defect"}, ValueError, "warmup must be at least 3 .*, got 2"),
        ({"warmup": 0, "criterion": "every(2)"}, ValueError, "warmup must be at least 1 .*, got 0"),
        (
            {"criterion": "plan"},
            ValueError,
            "plan must be given with criterion 'plan' and only with it, got None with 'plan'",
        ),
        ({"plan": PLAN}, ValueError, r"plan must be given .*, got Plan\(.* with 'third_order'"),
        (
            {"criterion": "plan", "plan": "fast"},
            TypeError,
            "plan must be a Plan, got str",
        ),
        ({"granularity": "pixel"}, ValueError, "granularity must be one of .*got 'pixel'"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        AdaptiveConfig(**arguments)
