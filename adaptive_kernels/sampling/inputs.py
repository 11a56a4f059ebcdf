"""What a user gives to a sampling, checked where it comes in."""

import numbers
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..rules.config import AdaptiveConfig
from ..rules.tables import FillTables
from ..solvers.draws import Generators, drawn
from ..solvers.table import SolverTable
from .network import Look, network_dtype
from .start import Start

# A share of clean latents in noise that nobody sees.
NEXT_TO_NOTHING = 0.1


def begin(
    table: SolverTable,
    config: AdaptiveConfig,
    model: Callable,
    noise: Tensor,
    *,
    latents: Tensor | None = None,
    seed: Any = 0,
    step_noise: Tensor | None = None,
    generator: Generators = None,
    guidance_scale: Tensor | None = None,
    threshold: Any = None,
    dtype: torch.dtype | None = None,
    tables: FillTables | None = None,
    look: Look | None = None,
) -> Start:
    """A sampling before its first step, from what a user gave.

    Args:
        model, noise, latents, seed, step_noise, generator, threshold: as a call of
            `AdaptiveSampler` takes them.
        guidance_scale: () or [B], of `guidance_of`; None: the network has no unconditional half.
        dtype: of the network's input; None takes `network_dtype(model)`.
        tables: `fill_tables(table, config)` made before; None makes them.
        look: at the model's parameters; None looks at them anew.

    Raises: ValueError, TypeError naming the argument.
    """
    if not isinstance(noise, Tensor) or not noise.is_floating_point() or noise.dim() < 2:
        got = type(noise).__name__
        if isinstance(noise, Tensor):
            got = f"{noise.dtype} {tuple(noise.shape)}"
        raise TypeError(
            f"noise must be a floating-point tensor [B, ...] of at least 2 dimensions, got {got}"
        )
    if noise.is_meta:
        raise ValueError("noise must have values, got a meta tensor")
    batch = noise.shape[0]
    x = first_latents(table, noise, latents)
    if step_noise is not None:
        expect("step_noise", step_noise, (table.num_steps, *noise.shape), noise.device)
        step_noise = step_noise.float()
    fed = dtype or network_dtype(model, look)
    if generator is not None:
        check_generator(generator, batch, {"seed": seed, "step_noise": step_noise})
        step_noise = drawn(table, noise.shape, generator, noise.device, fed)
    if guidance_scale is not None:
        if guidance_scale.dim() == 1 and guidance_scale.shape[0] != batch:
            raise ValueError(
                f"guidance_scale must have one value per sample ({batch}), "
                f"got {guidance_scale.shape[0]}"
            )
        if guidance_scale.dim():
            guidance_scale = guidance_scale.to(noise.device)
        elif guidance_scale.device.type == "cpu":
            guidance_scale = float(guidance_scale)
        else:
            guidance_scale = guidance_scale.to(noise.device).expand(batch).contiguous()
    start = Start.of(
        table,
        x,
        config,
        guidance_scale=guidance_scale,
        seed=seeds_of(seed, batch, noise.device),
        noise=step_noise,
        dtype=fed,
        tables=tables,
    )
    if threshold is not None:
        values = threshold_of(threshold, batch)
        used = config.granularity == "batch" and config.kind.threshold is not None
        if used and values.dim() and bool((values != values[:1]).any()):
            raise ValueError(
                "threshold must be one number with granularity 'batch', which takes one decision "
                f"for all samples, got {values.tolist()}"
            )
        start.inputs.threshold.copy_(values)
    return start


def first_latents(table: SolverTable, noise: Tensor, latents: Tensor | None) -> Tensor:
    """[B, ...] float32: x_0, of standard normal noise, and of clean latents where it takes them.

    Raises: TypeError, ValueError naming the argument.
    """
    x = noise.float() * table.init_noise_sigma
    if latents is None and (table.needs_latents or table.begin):
        why = "was made with a strength"
        if table.begin:
            why = f"leaves out the first {table.begin} rows of its schedule"
        elif table.levels is not None and table.levels.rising:
            why = "leads from an image to noise"
        raise ValueError(
            f"latents must be given, the clean ones to start from, as this table {why}; got None"
        )
    if latents is not None:
        if table.start is None:
            raise ValueError(
                f"latents must be None for {table}: its scheduler has no add_noise() and keeps no "
                "noise levels that fit its steps, so how much noise they need is not known"
            )
        expect("latents", latents, noise.shape, noise.device)
        clean_scale, noise_scale = table.start
        if not table.needs_latents and clean_scale < NEXT_TO_NOTHING * noise_scale:
            warnings.warn(
                "latents are clean ones to start from, and this table starts from noise, of which "
                f"they are a share of {clean_scale / noise_scale:.1g}: strength= below 1 makes it "
                "start later. Noise of one's own goes into noise=",
                RuntimeWarning,
                stacklevel=6,
            )
        x = clean_scale * latents.float() + noise_scale * noise.float()
    return x


def guidance_of(value) -> Tensor | None:
    if value is None:
        return None
    scale = _real("guidance_scale", value).detach().float().clone()
    if scale.dim() > 1:
        raise ValueError(f"guidance_scale must have shape () or (B,), got {tuple(scale.shape)}")
    if not bool(scale.isfinite().all()):
        raise ValueError(f"guidance_scale must be finite, got {value}")
    return None if scale.dim() == 0 and scale == 1.0 else scale


def _real(name: str, value) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be real numbers, got {value.dtype}")
        if value.is_meta:
            raise ValueError(f"{name} must have values, got a meta tensor")
        return value
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number or a tensor [B], got {value!r}")
    try:
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    except OverflowError:
        raise ValueError(f"{name} must fit float32, got {value!r}") from None


def threshold_of(value, batch: int) -> Tensor:
    value = _real("threshold", value)
    if tuple(value.shape) not in ((), (batch,)):
        raise ValueError(f"threshold must have shape () or ({batch},), got {tuple(value.shape)}")
    # Written so that NaN is refused.
    if not bool((value >= 0).all()):
        raise ValueError(f"threshold must be at least 0, got {value}")
    return value.detach().float()


def seeds_of(seed, batch: int, device: torch.device) -> Tensor:
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        first = int(seed)
        if not -(2**63) <= first <= 2**63 - max(batch, 1):
            raise ValueError(f"seed must be so that all {batch} of them fit int64, got {first}")
        if first + batch < 2**63:
            return torch.arange(first, first + batch, device=device)
        return first + torch.arange(batch, device=device)
    if isinstance(seed, torch.Generator):
        raise TypeError("seed must be ints, got a torch.Generator: generator= takes one")
    try:
        seeds = seed if isinstance(seed, Tensor) else torch.as_tensor(seed, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"seed must be an int or {batch} ints (int64), got {seed!r}") from None
    if seeds.dtype != torch.int64 or tuple(seeds.shape) != (batch,):
        raise ValueError(
            f"seed must be an int or {batch} ints (int64), got {seeds.dtype} {tuple(seeds.shape)}"
        )
    if seeds.is_meta:
        raise ValueError("seed must have values, got a meta tensor")
    return seeds.to(device)


def check_generator(generator: Any, batch: int, others: dict[str, Any]) -> None:
    """Raise unless it is a generator or one for each sample, and nothing else says the noise.

    others: seed and step_noise.
    """
    several = isinstance(generator, (list, tuple))
    if not all(isinstance(g, torch.Generator) for g in (generator if several else [generator])):
        raise TypeError(
            f"generator must be a torch.Generator or a list of {batch}, got {generator!r}"
        )
    if several and len(generator) != batch:
        raise ValueError(
            f"generator must be one, or one for each of {batch} samples, got {len(generator)}"
        )
    for name, value in others.items():
        # 0 is the seed that nobody gave.
        unsaid = isinstance(value, numbers.Integral) and value == 0
        if value is not None and not unsaid:
            raise ValueError(
                f"{name} must not be given beside generator: both are the solver's noise"
            )


def expect(name, value, shape, device, like="the noise"):
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device} as {like} is, got {value.device}")
