"""A config is valid, frozen and complete, or it raises by name."""

import dataclasses

import numpy as np
import pytest

from adaptive_kernels import AdaptiveConfig
from adaptive_kernels.demo.model import demo_scheduler
from adaptive_kernels.rules import laws
from adaptive_kernels.rules.plan import Plan
from adaptive_kernels.solvers.table import SolverTable
from tests.support import problems

TWO_STAGES = problems.table(stages=2)
PLAN = Plan(
    "X",
    (9.0, 8.0, 7.0, 5.0, 1.0),
    (True, True, False, False, True),
    ((1.0, 0.0, 0.0), *((0.5, 0.5, 0.0),) * 3, (1.0, 0.0, 0.0)),
)


def test_defaults_are_the_criterions_own():
    assert AdaptiveConfig() == AdaptiveConfig.recommended() == AdaptiveConfig(criterion="defect")
    paper = AdaptiveConfig.paper()
    assert paper == AdaptiveConfig(criterion="third_order")
    assert (paper.resolved().threshold, paper.resolved().warmup) == (0.1, 3)
    assert AdaptiveConfig.paper(threshold=0.2, max_skip=2).resolved().max_skip == 2
    assert AdaptiveConfig.recommended(threshold=0.004).threshold == 0.004
    released = AdaptiveConfig(criterion="released").resolved()
    assert (released.threshold, released.warmup, released.max_skip) == (0.01, 4, 4)
    assert AdaptiveConfig(criterion="every(3)").resolved().max_skip == 2
    assert AdaptiveConfig(criterion="every(3)").rule(TWO_STAGES) == (1, 2, 1, 2, False)
    assert released.resolved() == released


def test_frozen_hashable_and_replaceable():
    config = AdaptiveConfig(0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.threshold = 1.0
    assert dataclasses.replace(config, max_skip=2) == AdaptiveConfig(0.3, 2)
    assert len({config, AdaptiveConfig(0.3)}) == 1
    # Defaults follow the criterion, they do not stick to the config they were first read from.
    other = dataclasses.replace(AdaptiveConfig.paper(), criterion="released")
    assert other.resolved() == AdaptiveConfig(criterion="released").resolved()


def test_numbers_of_numpy_are_numbers():
    config = AdaptiveConfig(np.float32(0.5), np.int64(2))
    assert config.resolved() == AdaptiveConfig(0.5, 2).resolved()


def test_fills_belong_to_their_criteria():
    defect = AdaptiveConfig(criterion="defect").resolved()
    assert (defect.fill, defect.warmup, defect.max_skip, defect.threshold) == (
        *("linear", 1, 4),
        "auto",
    )
    assert defect.repair is None
    assert AdaptiveConfig.paper().resolved().fill == "reuse"
    assert AdaptiveConfig.paper(fill="linear").resolved().warmup == 3
    linear = AdaptiveConfig(criterion="every(3)", fill="linear")
    assert (linear.resolved().warmup, linear.resolved().max_skip) == (2, 2)
    assert AdaptiveConfig(criterion="never", fill="linear").resolved().warmup == 1
    assert AdaptiveConfig(criterion="every(3)", fill="linear", warmup=1).resolved().warmup == 1
    assert AdaptiveConfig(criterion="released", fill="linear").resolved().warmup == 4
    assert AdaptiveConfig(criterion="every(16)", fill="linear", repair=True).resolved().repair
    planned = AdaptiveConfig(criterion="plan", plan=PLAN, max_skip=9).resolved()
    assert (planned.fill, planned.warmup, planned.max_skip) == ("fitted", 1, 2)
    assert AdaptiveConfig(0.5, 3, "defect").rule(TWO_STAGES) == (4, 3, 3, 2, False)
    assert planned.rule(problems.table()) == (5, 2, 1, 1, False)
    assert planned.resolved() == planned and len({planned, planned.resolved()}) == 1


def test_auto_is_a_number_of_the_solver():
    """0.35 E^1.5 of the table's own error E, and the usual number where that is not known."""
    for steps in (6, 10):
        table = problems.ddim(steps)
        config = AdaptiveConfig()
        assert config.resolved().threshold == "auto"
        full = config.resolved(table)
        assert full.threshold == pytest.approx(laws.FACTOR * table.error**laws.POWER, rel=1e-12)
        assert full.resolved() == full.resolved(table) == full
        assert AdaptiveConfig(0.004).resolved(table).threshold == 0.004
        # Closer steps ask for closer skipping.
        assert full.threshold > AdaptiveConfig().resolved(problems.ddim(2 * steps)).threshold
    accurate = problems.ddim(400)
    assert laws.FACTOR * accurate.error**laws.POWER < laws.LEAST
    assert AdaptiveConfig().resolved(accurate).threshold == laws.LEAST
    noisy = SolverTable.from_scheduler(demo_scheduler(), 20, step_kwargs={"eta": 1.0})
    assert noisy.error is None
    assert AdaptiveConfig().resolved(noisy).threshold == laws.USUAL


def test_recommended_takes_what_the_class_takes():
    own = {
        **{"threshold": 0.004, "max_skip": 7, "fill": "linear", "warmup": 3, "repair": False},
        **{"granularity": "batch", "output_noise": 0.01, "num_inference_steps": 30},
    }
    fields = {field.name for field in dataclasses.fields(AdaptiveConfig)}
    assert fields - {*own} == {"criterion", "plan", "origin"}
    assert AdaptiveConfig.recommended(**own) == AdaptiveConfig(**own)
    assert AdaptiveConfig.recommended(calls=20, **own) == AdaptiveConfig(**own)
    with pytest.raises(ValueError, match=r"criterion must not be given, .*'defect', got 'never'"):
        AdaptiveConfig.recommended(criterion="never")
    with pytest.raises(TypeError, match="treshold"):
        AdaptiveConfig.recommended(treshold=0.1)


def test_recommended_for_a_number_of_calls_says_which_steps():
    configs = {calls: AdaptiveConfig.recommended(calls=calls) for calls in range(11, 51)}
    for calls, config in configs.items():
        # Whole runs of max_skip + 1 steps can make so few calls; divisors of 1,000 timesteps.
        assert config.num_inference_steps / (config.max_skip + 1) < calls
        assert 1000 % config.num_inference_steps == 0 and config.num_inference_steps >= 5 * calls
        assert config.criterion == "defect"
    thresholds = [config.threshold for config in configs.values()]
    assert thresholds == sorted(thresholds, reverse=True) and len({*thresholds}) == 40
    known = {round(calls): threshold for calls, threshold in laws.CALLS}
    assert AdaptiveConfig.recommended(calls=28).threshold == pytest.approx(known[28])
    own = AdaptiveConfig.recommended(calls=20, max_skip=9, granularity="batch")
    assert (own.max_skip, own.granularity, own.num_inference_steps) == (9, "batch", 200)


@pytest.mark.parametrize(
    ("calls", "error", "message"),
    [
        (10.9, ValueError, "calls must be from 11 to 50, got 10.9; below, a plan"),
        (51, ValueError, "calls must be from 11 to 50, got 51"),
        (float("nan"), ValueError, "calls must be from 11 to 50, got nan"),
        ("20", TypeError, "calls must be a number, got str"),
        (True, TypeError, "calls must be a number, got bool"),
    ],
)
def test_refusals_of_a_number_of_calls(calls, error, message):
    with pytest.raises(error, match=message):
        AdaptiveConfig.recommended(calls=calls)


def test_the_warmup_of_defect_is_the_solvers():
    """Runs may begin on the first output, but where the solver adds noise or has two stages."""
    noisy = SolverTable.from_scheduler(demo_scheduler(), 20, step_kwargs={"eta": 1.0})
    for table, expected in ((problems.ddim(20), 1), (TWO_STAGES, 3), (noisy, 3)):
        assert AdaptiveConfig().rule(table).warmup == expected
        assert AdaptiveConfig(warmup=5).rule(table).warmup == 5


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
        (
            {"threshold": "0.1"},
            ValueError,
            "threshold must be a number, or 'auto' under criterion 'defect', got '0.1' under 'def",
        ),
        (
            {"threshold": "auto", "criterion": "third_order"},
            ValueError,
            "threshold must be a number, or 'auto' .*, got 'auto' under 'third_order'",
        ),
        ({"threshold": True}, TypeError, "threshold must be a float or 'auto', got bool"),
        ({"max_skip": -1}, ValueError, "max_skip must be at least 0 .*, got -1"),
        ({"threshold": 1e300}, ValueError, "threshold must be at least 0 and fit float32, got 1e"),
        ({"threshold": 10**400}, ValueError, "threshold must be at least 0 and fit float32"),
        ({"max_skip": 2**63}, ValueError, "max_skip must be .* at most 2147483647, got 9"),
        ({"criterion": "every(99999999999)"}, ValueError, "criterion must be"),
        (
            {"num_inference_steps": 0},
            ValueError,
            "num_inference_steps must be at least 1 .*, got 0",
        ),
        ({"num_inference_steps": 9.5}, TypeError, "num_inference_steps must be an int, got float"),
        ({"max_skip": 1.5}, TypeError, "max_skip must be an int, got float"),
        ({"max_skip": 0, "criterion": "released"}, ValueError, "max_skip must be at least 1"),
        (
            {"warmup": 2, "criterion": "third_order"},
            ValueError,
            "warmup must be at least 3 .*, got 2",
        ),
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
        (
            {"fill": "fitted", "criterion": "third_order"},
            ValueError,
            "fill 'fitted' needs criterion 'plan', got 'third_order'",
        ),
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
        (
            {"repair": True, "criterion": "released"},
            ValueError,
            "repair needs fill 'linear', got fill 'reuse'",
        ),
        (
            {"repair": True, "criterion": "plan", "plan": PLAN},
            ValueError,
            "repair needs fill 'linear', got fill 'fitted'",
        ),
        ({"warmup": 0, "criterion": "defect"}, ValueError, "warmup must be at least 1 .*, got 0"),
        ({"warmup": 0, "criterion": "every(2)"}, ValueError, "warmup must be at least 1 .*, got 0"),
        (
            {"criterion": "plan"},
            ValueError,
            "plan must be given with criterion 'plan' and only with it, got None with 'plan'",
        ),
        ({"plan": PLAN}, ValueError, r"plan must be given .*, got Plan\(.* with 'defect'"),
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
