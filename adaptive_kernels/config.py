"""What a user chooses: criterion, threshold, limits. Validated once, frozen."""

import math
import numbers
import re
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["AdaptiveConfig", "Rule"]

# Codes as in csrc/decide.h.
CRITERIA = {"never": 0, "every": 1, "third_order": 2, "released": 3}
FILLS = ("reuse",)
GRANULARITIES = ("sample", "batch")

# third_order: chosen on the shipped model (README, "Measurements"); released: the authors' value.
DEFAULT_THRESHOLDS = {"never": 0.0, "every": 0.0, "third_order": 0.1, "released": 0.01}
LARGEST = 2**31 - 1
LARGEST_FLOAT = 3.4028234663852886e38
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
        kind, _ = _parse(self.criterion)
        _choice("fill", self.fill, FILLS)
        _choice("granularity", self.granularity, GRANULARITIES)
        _integer("max_skip", self.max_skip, 1 if kind == "released" else 0)
        if self.warmup is not None:
            _integer("warmup", self.warmup, LEAST_WARMUP[kind])
        if self.threshold is not None:
            _threshold(self.threshold)

    def resolved(self) -> "AdaptiveConfig":
        """This config with every default of its criterion written out."""
        kind, period = _parse(self.criterion)
        return replace(
            self,
            threshold=float(DEFAULT_THRESHOLDS[kind] if self.threshold is None else self.threshold),
            max_skip=period - 1 if kind == "every" else int(self.max_skip),
            warmup=int(LEAST_WARMUP[kind] if self.warmup is None else self.warmup),
        )

    def rule(self, stages: int = 1) -> Rule:
        """The integers of this config for a solver with `stages` network calls per whole step."""
        full = self.resolved()
        return Rule(CRITERIA[_parse(self.criterion)[0]], full.max_skip, full.warmup, stages)


def _parse(criterion) -> tuple[str, int]:
    if isinstance(criterion, str):
        if criterion in ("never", "third_order", "released"):
            return criterion, 0
        found = re.fullmatch(r"every\((\d+)\)", criterion)
        if found and 1 <= int(found[1]) <= LARGEST:
            return "every", int(found[1])
    raise ValueError(
        "criterion must be 'third_order', 'released', 'never' or 'every(k)' with k >= 1, "
        f"got {criterion!r}"
    )


def _choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _integer(name, value, least):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not least <= value <= LARGEST:
        raise ValueError(f"{name} must be at least {least} and at most {LARGEST}, got {value}")


def _threshold(value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"threshold must be a float, got {type(value).__name__}")
    if not (0 <= value <= LARGEST_FLOAT or value == math.inf):
        raise ValueError(f"threshold must be at least 0 and fit float32, got {value}")
