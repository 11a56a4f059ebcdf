"""The thin sampler: while some sample is not finished, call the network, then advance."""

import numbers
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .config import AdaptiveConfig
from .fills import fill_tables
from .network import DTYPES, NetworkCall, network_dtype
from .schedule import SolverTable
from .state import MAX_HISTORY, State

__all__ = ["AdaptiveSampler", "SamplingResult", "StepInfo"]


@dataclass(frozen=True)
class SamplingResult:
    """What a sampling gives: the latents and the record of its decisions.

    T solver steps, B samples; ``score[i]`` decided step i: left over right side of the criterion,
    NaN where the step was forced without one.
    """

    latents: Tensor  # [B, ...] float32
    nfe: Tensor  # [B] int32: network calls per sample; a guided pair counts as one
    refreshed: Tensor  # [T, B] bool
    score: Tensor  # [T, B] float32
    nonfinite: Tensor  # [B] bool: NaN or Inf in the final latents
    executor: str = "eager"


@dataclass(frozen=True)
class StepInfo:
    """What ``callback`` is given after every tick: a network call and all until the next one.

    The tensors are the sampler's own buffers: read them, copy what shall outlive the call.
    """

    tick: int
    index: Tensor  # [B] int32: solver steps done
    nfe: Tensor  # [B] int32
    refreshed: Tensor  # [T, B] bool, filled up to index
    latents: Callable[[], Tensor]  # () -> [B, ...] float32, each sample at its own step


class AdaptiveSampler:
    """Samples a diffusion model, calling the network only where the criterion asks for it.

        while some sample is not finished:
            model_output = network(model_input, timestep)
            advance(state)                          # the solver, the norms, the decisions

    Holds no state between calls: one sampler serves several threads, and a call after a failed
    one starts clean. On an accelerator this loop reads the samples' progress once per tick.

    Args:
        scheduler: a diffusers scheduler (left untouched) or a `SolverTable`.
        num_inference_steps: solver steps, with a scheduler; None with a `SolverTable`.
        config: criterion, threshold and limits.
        guidance_scale: g of ``mu + g (mc - mu)``, a number or a tensor [B]; None or 1.0 calls the
            network on the conditional half alone.
        dtype: of the network's input; None takes the dtype of the model's parameters.
        **table_arguments: passed to `SolverTable.from_scheduler` (strength, step_kwargs, mu, ...).

    Raises:
        UnsupportedSchedulerError: the scheduler is no table; names the setting.
        ValueError, TypeError: naming the argument, what was expected and what came.

    Source: AdaptiveDiffusion, arXiv 2410.09873, algorithm 1, per sample.
    """

    def __init__(
        self,
        scheduler: Any,
        num_inference_steps: int | None = None,
        config: AdaptiveConfig | None = None,
        guidance_scale: float | Tensor | None = None,
        dtype: torch.dtype | None = None,
        **table_arguments,
    ):
        if config is not None and not isinstance(config, AdaptiveConfig):
            raise TypeError(f"config must be an AdaptiveConfig, got {type(config).__name__}")
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype}")
        if isinstance(scheduler, SolverTable):
            surplus = [*table_arguments]
            if num_inference_steps is not None:
                surplus = ["num_inference_steps", *surplus]
            if surplus:
                raise ValueError(
                    f"a SolverTable already fixes the steps; drop {', '.join(surplus)}"
                )
            self.table = scheduler
        else:
            self.table = SolverTable.from_scheduler(
                scheduler, num_inference_steps, **table_arguments
            )
        if self.table.history > MAX_HISTORY:
            raise ValueError(
                f"scheduler must keep at most {MAX_HISTORY} outputs, got {self.table}; PNDM needs "
                "skip_prk_steps=True"
            )
        self.config = config or AdaptiveConfig()
        self._tables = fill_tables(self.table, self.config)
        self.dtype = dtype
        self.guidance_scale = _guidance(guidance_scale)
        self._scale_is_one = guidance_scale is not None and self.guidance_scale is None

    @torch.no_grad()
    def __call__(
        self,
        model: Callable,
        noise: Tensor,
        conditioning: dict | None = None,
        unconditional: dict | None = None,
        *,
        latents: Tensor | None = None,
        seed: int | Sequence[int] | Tensor = 0,
        step_noise: Tensor | None = None,
        gather: bool = True,
        callback: Callable[[StepInfo], None] | None = None,
        progress: bool = True,
    ) -> SamplingResult:
        """Samples B latents from noise.

        Args:
            model: ``model(model_input, timestep, **conditioning)``, rows in, rows out; gets 2B
                rows with guidance, unconditional first. timestep: [rows], the scheduler's units.
            noise: [B, ...] floating, standard normal; scaled here.
            conditioning, unconditional: the model's keyword arguments, pytrees of tensors [B, ...].
            latents: [B, ...] clean latents to start from (img2img), with a table made with
                `strength` or `begin_index`; noise is added here at the first timestep's level.
            seed: noise streams of stochastic solvers: an int s gives sample b the stream s + b; a
                sequence or tensor [B] names each. A stream is the same whatever the batch.
            step_noise: [T, B, ...] float32, the solver's noise itself, in place of `seed`.
            gather: call the model on unfinished samples only; False always sends all rows, for a
                model that closes over per-row data.
            callback: called with a `StepInfo` after every tick.
            progress: whether to show a tqdm bar.

        Raises: ValueError, TypeError at the border; what the model raises passes through.
        """
        state = self.begin(model, noise, latents, seed, step_noise)
        guided = self.guidance_scale is not None
        network = NetworkCall(
            model,
            noise.shape,
            guided,
            conditioning,
            # A scale of 1.0 is the conditional half alone, whatever else is given.
            unconditional if guided or not self._scale_is_one else None,
            gather,
            noise.device,
        )
        steps, batch = self.table.num_steps, noise.shape[0]
        tick = 0
        with tqdm(total=steps * batch, unit="step", disable=not progress) as bar:
            while len(rows := (state.index < steps).nonzero()[:, 0]):
                partial = rows if gather and len(rows) < batch else None
                output = network(state.model_input, state.timestep, partial)
                state.advance(output, partial)
                tick += 1
                bar.update(int(state.index.sum()) - bar.n)
                if callback is not None:
                    callback(_info(state, tick, noise.shape))
        return _result(state, noise.shape)

    def begin(self, model, noise, latents=None, seed=0, step_noise=None) -> State:
        """The buffers before the first step; the arguments of a call, checked as there."""
        if not isinstance(noise, Tensor) or not noise.is_floating_point() or noise.dim() < 2:
            raise TypeError(
                "noise must be a floating-point tensor [B, ...] of at least 2 dimensions, got "
                + (
                    f"{noise.dtype} {tuple(noise.shape)}"
                    if isinstance(noise, Tensor)
                    else type(noise).__name__
                )
            )
        batch, table = noise.shape[0], self.table
        x = noise.float() * table.init_noise_sigma
        if latents is None and table.begin:
            raise ValueError(
                "latents must be given, the clean ones to start from, as this table leaves out "
                f"the first {table.begin} rows of its schedule; got None"
            )
        if latents is not None:
            _expect("latents", latents, noise.shape, noise.device)
            clean_scale, noise_scale = table.start
            x = clean_scale * latents.float() + noise_scale * noise.float()
        if step_noise is not None:
            _expect("step_noise", step_noise, (table.num_steps, *noise.shape), noise.device)
            step_noise = step_noise.float()
        guidance = self.guidance_scale
        if guidance is not None:
            if guidance.dim() == 1 and guidance.shape[0] != batch:
                raise ValueError(
                    f"guidance_scale must have one value per sample ({batch}), "
                    f"got {guidance.shape[0]}"
                )
            guidance = guidance.to(noise.device).expand(batch).contiguous()
        return State.begin(
            table,
            x,
            self.config,
            guidance_scale=guidance,
            seed=_seeds(seed, batch).to(noise.device),
            noise=step_noise,
            dtype=self.dtype or network_dtype(model),
            tables=self._tables,
        )


def _guidance(value) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, (numbers.Real, Tensor)) or isinstance(value, bool):
        raise TypeError(f"guidance_scale must be a number or a tensor [B], got {value!r}")
    if not isinstance(value, Tensor):
        value = torch.tensor(float(value), device="cpu")
    scale = value.detach().float().clone()
    if scale.dim() > 1:
        raise ValueError(f"guidance_scale must have shape () or (B,), got {tuple(scale.shape)}")
    if not bool(scale.isfinite().all()):
        raise ValueError(f"guidance_scale must be finite, got {value}")
    return None if scale.dim() == 0 and scale == 1.0 else scale


def _seeds(seed, batch: int) -> Tensor:
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool):
        return int(seed) + torch.arange(batch, device="cpu")
    seeds = seed if isinstance(seed, Tensor) else torch.as_tensor(seed, device="cpu")
    if seeds.dtype != torch.int64 or tuple(seeds.shape) != (batch,):
        raise ValueError(
            f"seed must be an int or {batch} ints (int64), got {seeds.dtype} {tuple(seeds.shape)}"
        )
    return seeds


def _expect(name, value, shape, device):
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {type(value).__name__}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device} as the noise is, got {value.device}")


def _info(state: State, tick: int, shape) -> StepInfo:
    return StepInfo(
        tick, state.index, state.nfe, state.refreshed, lambda: state.current().view(shape)
    )


def _result(state: State, shape) -> SamplingResult:
    latents = state.current()
    nonfinite = ~latents.isfinite().all(dim=1)
    if bool(nonfinite.any()):
        which = nonfinite.nonzero()[:, 0].tolist()
        warnings.warn(
            f"the latents of samples {which} hold NaN or Inf (result.nonfinite)",
            RuntimeWarning,
            stacklevel=3,
        )
    return SamplingResult(
        latents=latents.view(shape),
        nfe=state.nfe.clone(),
        refreshed=state.refreshed,
        score=state.score,
        nonfinite=nonfinite,
    )
