"""What a user chooses: criterion, threshold, limits. Validated once, frozen."""

import math
import numbers
from dataclasses import dataclass, replace

from ..solvers.table import SolverTable
from .criteria import AUTO, CRITERIA, LARGEST, LONGEST_FILL, Criterion, Rule, parse
from .laws import LEAST_CALLS, MOST_CALLS, settings_for, threshold_for, warmup_for
from .origin import Origin
from .plan import Plan
from .precision import noise_size

__all__ = ["AdaptiveConfig", "Rule"]

FILLS = ("reuse", "linear", "fitted")
GRANULARITIES = ("sample", "batch")

LARGEST_FLOAT = 3.4028234663852886e38


@dataclass(frozen=True)
class AdaptiveConfig:
    """When to call the network and what stands for its output where it is not called.

    Criteria, at the end of whole step i (a refresh is a network call):

    - ``"defect"``, the default: at a refresh the network tells how wrong the fill would have been;
      skip as far as the same growth of the error keeps the predicted error of the result within
      threshold (module `fills` has the formulas). Needs a solver whose noise levels are known.
    - ``"third_order"``: refresh unless ``||x_{i+1} - 3 x_i + 3 x_{i-1} - x_{i-2}||_2 <
      threshold * ||x_i - x_{i-1}||_2``, per sample (AdaptiveDiffusion, arXiv 2410.09873, eq. 8).
    - ``"released"``: its authors' code: skip if ``|(d_{i+1} + d_{i-1}) / 2 - d_i| <= threshold *
      d_i`` with ``d_i = mean |x_i - x_{i-1}|``; four forced refreshes.
    - ``"plan"``: a fixed mask with fitted weights, made by `adaptive_kernels.calibrate`.
    - ``"never"``: never skip; the plain sampler.
    - ``"every(k)"``: refresh every k-th step, a fixed pattern.

    Args:
        threshold: right-hand factor, dimensionless, >= 0; under "defect" the predicted rms
            error of one run in units of 4, four times the spread of data of about unit spread.
            "auto", under "defect" alone: 0.35 E^1.5, but at least 0.0005, with E the solver's own
            error (`SolverTable.error`), so that skipping costs at most about half a decibel of the
            full run's distance to the exact solution (with 100 steps and more up to 2.3); 0.0016
            where E is not known, as of a solver that adds noise. None takes the criterion's
            default, "auto" for "defect".
            Ignored by "never", "every(k)" and "plan".
        max_skip: largest number of consecutive skipped steps, >= 0 ("released": >= 1, and as in
            its authors' code the guard is idle for the first five decisions). At most 15 with a
            fill other than "reuse". "every(k)" and "plan" set it.
        criterion: one of the six above.
        fill: what stands for the model output at a skipped step: "reuse", the last one; "linear",
            the line through the last two noise predictions over log(alpha / sigma) (x0 predictions
            where the solver adds noise); "fitted", the weights of a plan. None takes the one that
            belongs to the criterion: "linear" for defect, "fitted" for plan, else "reuse".
        warmup: whole steps at the start that always refresh; None takes the least the criterion
            can decide with (3 for third_order, 4 for released, 1 otherwise, 2 with the linear
            fill; 1 for defect, and 3 with a solver that adds noise or has two stages).
        granularity: "sample" decides for every sample alone; "batch" takes one decision from the
            sums over the whole batch, as published implementations do.
        repair: whether a refresh makes up for what the skipped steps before it did wrong; with
            fill "linear" only. None: under "defect", where the solver adds no noise.
        plan: the `Plan` of criterion "plan".
        output_noise: how much the network's rounding adds to its outputs, rms against outputs of
            about unit size; "defect" does not take that for the fill's error. None: from the dtype
            of what the network is fed, or of the autocast around the call. A dtype, where neither
            tells (a network that casts within); a number, or one for each step, as
            `measure_output_noise` finds them for 8-bit networks; 0: none.
            Kept as numbers.
        num_inference_steps: solver steps that these settings were chosen for, or None. A sampler
            takes them where it is given none, and says so where it is given others.
        origin: the solver and the network that these settings were found on, as `calibrate` writes
            them down; used with others, they warn.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    threshold: float | str | None = None
    max_skip: int = 4
    criterion: str = "defect"
    fill: str | None = None
    warmup: int | None = None
    granularity: str = "sample"
    repair: bool | None = None
    plan: Plan | None = None
    output_noise: float | tuple[float, ...] | None = None
    num_inference_steps: int | None = None
    origin: Origin | None = None

    def __post_init__(self):
        kind, period = parse(self.criterion)
        _choice("granularity", self.granularity, GRANULARITIES)
        _integer("max_skip", self.max_skip, CRITERIA[kind].least_skip)
        if self.warmup is not None:
            _integer("warmup", self.warmup, CRITERIA[kind].warmup)
        if self.num_inference_steps is not None:
            _integer("num_inference_steps", self.num_inference_steps, 1)
        if self.threshold is not None:
            _threshold(self.threshold, kind)
        if self.origin is not None and not isinstance(self.origin, Origin):
            raise TypeError(f"origin must be an Origin, got {type(self.origin).__name__}")
        _fill(self, kind, period)
        object.__setattr__(self, "output_noise", noise_size(self.output_noise))

    @classmethod
    def paper(cls, **settings) -> "AdaptiveConfig":
        """The rule of AdaptiveDiffusion (arXiv 2410.09873): third_order, outputs reused.

        Args:
            settings: further ones of this class.
        """
        return cls(criterion="third_order", **settings)

    @classmethod
    def recommended(cls, calls: float | None = None, **settings) -> "AdaptiveConfig":
        """The rule that came closest in the laboratory (docs/quality.md), which is the default one.

        Args:
            calls: about how many network calls a sample shall make. Many steps with few calls stand
                closer to the exact solution than as many plain steps, and than all calls of fewer
                steps: so many steps (`num_inference_steps`), max_skip and threshold go with it. How
                many calls a threshold comes to is the model's matter: on another than the shipped
                one they may be half as many again. `calibrate(calls=)` meets a number. None: the
                steps are yours, and the threshold is the solver's.
            settings: further ones of this class (threshold, max_skip, fill, ...); they come before
                those that calls would set.

        Raises: ValueError, TypeError naming the argument.
        """
        if "criterion" in settings:
            raise ValueError(
                "criterion must not be given, the recommended one is 'defect', got "
                f"{settings['criterion']!r}: AdaptiveConfig(criterion=...) takes another"
            )
        if calls is not None:
            if isinstance(calls, bool) or not isinstance(calls, numbers.Real):
                raise TypeError(f"calls must be a number, got {type(calls).__name__}")
            if not LEAST_CALLS <= calls <= MOST_CALLS:
                raise ValueError(
                    f"calls must be from {LEAST_CALLS} to {MOST_CALLS}, got {calls}; below, a plan "
                    "fitted to the model is what helps (adaptive_kernels.calibrate)"
                )
            settings = settings_for(float(calls)) | settings
        return cls(criterion="defect", **settings)

    def resolved(self, table: SolverTable | None = None) -> "AdaptiveConfig":
        """This config with every default of its criterion written out.

        Args:
            table: the solver, of which a threshold "auto" and the warm-up of "defect" are a
                matter; None leaves "auto" as it is.
        """
        kind, period = parse(self.criterion)
        fill = CRITERIA[kind].fill if self.fill is None else self.fill
        threshold = (CRITERIA[kind].threshold or 0.0) if self.threshold is None else self.threshold
        if threshold == AUTO and table is not None:
            threshold = threshold_for(table)
        least = max(CRITERIA[kind].warmup, 2 if fill == "linear" and kind != "never" else 1)
        if kind == "defect":
            least = 1 if table is None else warmup_for(table)
        fixed = {"every": period - 1, "plan": self.plan.max_skip if self.plan else 0}
        return replace(
            self,
            threshold=AUTO if threshold == AUTO else float(threshold),
            max_skip=fixed.get(kind, int(self.max_skip)),
            warmup=int(least if self.warmup is None else self.warmup),
            fill=fill,
        )

    def rule(self, table: SolverTable) -> Rule:
        """The integers of this config for a solver."""
        full = self.resolved(table)
        wide = self.granularity == "batch"
        return Rule(self.kind.code, full.max_skip, full.warmup, table.stages, wide)

    @property
    def kind(self) -> Criterion:
        """What there is to know of the criterion, whatever its period."""
        return CRITERIA[parse(self.criterion)[0]]


def _fill(config, kind, period):
    if config.fill is not None:
        _choice("fill", config.fill, FILLS)
        if (own := CRITERIA[kind].fill) != "reuse" and config.fill != own:
            raise ValueError(f"fill must be {own!r} for criterion {kind!r}, got {config.fill!r}")
        if config.fill == "fitted" and kind != "plan":
            raise ValueError(f"fill 'fitted' needs criterion 'plan', got {config.criterion!r}")
    fill = CRITERIA[kind].fill if config.fill is None else config.fill
    linear = fill == "linear"
    longest = period - 1 if kind == "every" else config.max_skip
    if linear and kind != "never" and longest > LONGEST_FILL:
        name = "k" if kind == "every" else "max_skip"
        raise ValueError(
            f"{name} must be at most {LONGEST_FILL + (kind == 'every')} with fill 'linear', "
            f"got {longest + (kind == 'every')}"
        )
    if config.repair is not None and not isinstance(config.repair, bool):
        raise TypeError(f"repair must be a bool or None, got {type(config.repair).__name__}")
    if config.repair and not linear:
        raise ValueError(f"repair needs fill 'linear', got fill {fill!r}")
    if (kind == "plan") != (config.plan is not None):
        raise ValueError(
            f"plan must be given with criterion 'plan' and only with it, got {config.plan!r} with "
            f"{config.criterion!r}"
        )
    if kind == "plan" and config.warmup not in (None, 1):
        raise ValueError(
            f"warmup must be None for a plan, which fixes its calls, got {config.warmup}"
        )
    if config.output_noise is not None and "defect" not in CRITERIA[kind].sums:
        raise ValueError(
            f"output_noise goes with criterion 'defect', got {config.output_noise!r} with "
            f"{config.criterion!r}"
        )
    if config.plan is not None and not isinstance(config.plan, Plan):
        raise TypeError(f"plan must be a Plan, got {type(config.plan).__name__}")


def _choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _integer(name, value, least):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not least <= value <= LARGEST:
        raise ValueError(f"{name} must be at least {least} and at most {LARGEST}, got {value}")


def _threshold(value, kind):
    if isinstance(value, str):
        if value != AUTO or CRITERIA[kind].threshold != AUTO:
            raise ValueError(
                f"threshold must be a number, or {AUTO!r} under criterion 'defect', got {value!r} "
                f"under {kind!r}"
            )
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"threshold must be a float or {AUTO!r}, got {type(value).__name__}")
    if not (0 <= value <= LARGEST_FLOAT or value == math.inf):
        raise ValueError(f"threshold must be at least 0 and fit float32, got {value}")
