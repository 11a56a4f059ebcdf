"""A config is valid, frozen and complete, or it raises by name."""

import dataclasses

import pytest

from adaptive_kernels import AdaptiveConfig


def test_defaults_are_the_criterions_own():
    assert AdaptiveConfig().criterion == "third_order"
    assert AdaptiveConfig().warmup == 3
    released = AdaptiveConfig(criterion="released")
    assert (released.threshold, released.warmup, released.max_skip) == (0.01, 4, 4)
    assert AdaptiveConfig(criterion="every(3)").max_skip == 2
    assert AdaptiveConfig(criterion="every(3)").rule(stages=2) == (1, 2, 1, 2)


def test_frozen_hashable_and_replaceable():
    config = AdaptiveConfig(0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.threshold = 1.0
    assert dataclasses.replace(config, max_skip=2) == AdaptiveConfig(0.3, 2)
    assert len({config, AdaptiveConfig(0.3)}) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": -0.1}, ValueError, "threshold must be at least 0, got -0.1"),
        ({"threshold": float("nan")}, ValueError, "threshold must be at least 0, got nan"),
        ({"threshold": "0.1"}, TypeError, "threshold must be a float, got str"),
        ({"threshold": True}, TypeError, "threshold must be a float, got bool"),
        ({"max_skip": -1}, ValueError, "max_skip must be at least 0, got -1"),
        ({"max_skip": 1.5}, TypeError, "max_skip must be an int, got float"),
        ({"max_skip": 0, "criterion": "released"}, ValueError, "max_skip must be at least 1"),
        ({"warmup": 2}, ValueError, "warmup must be at least 3, got 2"),
        ({"warmup": 3, "criterion": "released"}, ValueError, "warmup must be at least 4, got 3"),
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
