"""A config is valid, frozen and complete, or it raises by name."""

import dataclasses

import numpy as np
import pytest

from adaptive_kernels import AdaptiveConfig


def test_defaults_are_the_criterions_own():
    assert AdaptiveConfig().criterion == "third_order"
    assert AdaptiveConfig().resolved().warmup == 3
    released = AdaptiveConfig(criterion="released").resolved()
    assert (released.threshold, released.warmup, released.max_skip) == (0.01, 4, 4)
    assert AdaptiveConfig(criterion="every(3)").resolved().max_skip == 2
    assert AdaptiveConfig(criterion="every(3)").rule(stages=2) == (1, 2, 1, 2)
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
        ({"fill": "linear"}, ValueError, "fill must be one of 'reuse', got 'linear'"),
        ({"granularity": "pixel"}, ValueError, "granularity must be one of .*got 'pixel'"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        AdaptiveConfig(**arguments)
