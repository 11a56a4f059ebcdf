"""What a user chooses: criterion, threshold, limits. Validated once, frozen."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["AdaptiveConfig", "Rule"]

# Codes as in csrc/decide.h.
CRITERIA = {"never": 0, "every": 1, "third_order": 2, "released": 3}
FILLS = ("reuse",)
GRANULARITIES = ("sample", "batch")

# third_order: chosen on the shipped model (README, "Measurements"); released: the authors' value.
DEFAULT_THRESHOLDS = {"never": 0.0, "every": 0.0, "third_order": 0.1, "released": 0.01}
# The first decision needs four latents (third_order), or three differences of computed ones.
LEAST_WARMUP = {"never": 1, "every": 1, "third_order": 3, "released": 4}


class Rule(NamedTuple):
    """The integers an op is given; the fields of `Rule` in csrc/decide.h."""

    criterion: int
    max_skip: int
    warmup: int
    stages: int


@dataclass(frozen=True)
class AdaptiveConfig:
    """When to call the network and what stands for its output where it is not called.

    Criteria, at the end of whole step i (a refresh is a network call):

    - ``"third_order"``: refresh unless ``||x_{i+1} - 3 x_i + 3 x_{i-1} - x_{i-2}||_2 <
      threshold * ||x_i - x_{i-1}||_2``, per sample (AdaptiveDiffusion, arXiv 2410.09873, eq. 8).
    - ``"released"``: its authors' code: skip if ``|(d_{i+1} + d_{i-1}) / 2 - d_i| <= threshold *
      d_i`` with ``d_i = mean |x_i - x_{i-1}|``; four forced refreshes.
    - ``"never"``: never skip; the plain sampler.
    - ``"every(k)"``: refresh every k-th step, a fixed pattern.

    Args:
        threshold: right-hand factor, dimensionless, >= 0; None takes the criterion's default.
            Ignored by "never" and "every(k)".
        max_skip: largest number of consecutive skipped steps, >= 0 ("released": >= 1, and as in
            its authors' code the guard is idle for the first five decisions). "every(k)" sets it.
        criterion: one of the four above.
        fill: what stands for the model output at a skipped step: "reuse", the last one.
        warmup: whole steps at the start that always refresh; None takes the least the criterion
            can decide with (3 for third_order, 4 for released, 1 otherwise).
        granularity: "sample" decides for every sample alone; "batch" takes one decision from the
            sums over the whole batch, as published implementations do.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    threshold: float | None = None
    max_skip: int = 4
    criterion: str = "third_order"
    fill: str = "reuse"
    warmup: int | None = None
    granularity: str = "sample"

    def __post_init__(self):
        kind, period = _parse(self.criterion)
        _choice("fill", self.fill, FILLS)
        _choice("granularity", self.granularity, GRANULARITIES)
        _integer("max_skip", self.max_skip, 1 if kind == "released" else 0)
        if self.warmup is None:
            object.__setattr__(self, "warmup", LEAST_WARMUP[kind])
        _integer("warmup", self.warmup, LEAST_WARMUP[kind])
        if self.threshold is None:
            object.__setattr__(self, "threshold", DEFAULT_THRESHOLDS[kind])
        object.__setattr__(self, "threshold", _threshold(self.threshold))
        if kind == "every":
            object.__setattr__(self, "max_skip", period - 1)

    def rule(self, stages: int = 1) -> Rule:
        """The integers of this config for a solver with `stages` network calls per whole step."""
        return Rule(CRITERIA[_parse(self.criterion)[0]], self.max_skip, self.warmup, stages)


def _parse(criterion) -> tuple[str, int]:
    if isinstance(criterion, str):
        if criterion in ("never", "third_order", "released"):
            return criterion, 0
        found = re.fullmatch(r"every\((\d+)\)", criterion)
        if found and int(found[1]) >= 1:
            return "every", int(found[1])
    raise ValueError(
        "criterion must be 'third_order', 'released', 'never' or 'every(k)' with k >= 1, "
        f"got {criterion!r}"
    )


def _choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _integer(name, value, least):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _threshold(value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"threshold must be a float, got {type(value).__name__}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"threshold must be at least 0, got {value}")
    return float(value)
