"""The thin sampler: while some sample is not finished, call the network, then advance."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .executors import Executors, Job, Prepared
from .rules.config import AdaptiveConfig
from .rules.fills import fill_tables
from .sampling.bar import bar_of
from .sampling.edit import edit
from .sampling.inputs import begin, guidance_of
from .sampling.network import DTYPES, GUIDANCE_CALLS, NetworkCall
from .sampling.result import SamplingResult, StepInfo, info_of, result_of, warn_of_nonfinite
from .sampling.skipping import Calls, may_be_few, wants_skips, warn_of_few_skips
from .sampling.solver import check_kinds, solver_of, warn_of_other_network
from .sampling.start import Start
from .sampling.state import State
from .solvers.draws import Generators
from .solvers.keywords import known_keywords

__all__ = ["AdaptiveSampler"]


class AdaptiveSampler:
    """Samples a diffusion model, calling the network only where the criterion asks for it.

        while some sample is not finished:
            model_output = network(model_input, timestep)
            advance(state)                          # the solver, the norms, the decisions

    One sampler serves several threads, and a call after a failed one starts clean. How the loop
    runs is the executor's matter, with the same latents and decisions:

    - ``"graph"``: one CUDA-graph launch for all of it; nothing synchronises from the first step to
      the last. Compiled CUDA library, driver of CUDA 12.4 or newer.
    - ``"groups"``: a CUDA graph per tick, launched ahead by the host. CUDA and ROCm.
    - ``"eager"``: the plain loop, any device; reads the samples' steps once per tick, and calls the
      network on the unfinished samples alone.
    - ``"auto"``: of the graphs that work the one that took less time in the first four samplings,
      else the plain loop; `SamplingResult` says which one, and why.

    Graphs are captured at the first call and kept for calls of the same shapes, whatever their
    noise, conditioning, thresholds, guidance scales and seeds; `close` (or ``with``) frees them. A
    captured network is called on all rows, and must not draw random numbers nor read a value on the
    host. A change of the model is looked for at every call: tensors that moved, plain
    attributes, what a function closes over. What lies more than four steps from it is not seen:
    `close` makes the next call capture again.

    Args:
        scheduler: a diffusers scheduler (left untouched) or a `SolverTable`.
        num_inference_steps: solver steps, with a scheduler; None with a `SolverTable`, or to take
            those that the config was chosen for.
        config: criterion, threshold and limits; None is `AdaptiveConfig()`.
        guidance_scale: g of ``mu + g (mc - mu)``, a number or a tensor [B]; None or 1.0 calls the
            network on the conditional half alone.
        dtype: of the network's input; None takes what the model's own `dtype` says, else that of
            most of its parameters.
        executor: "auto", "graph", "groups" or "eager".
        guidance_calls: "batched" calls the model once on 2B rows; "separate" twice on B, for halves
            whose conditioning does not stack (embeddings of another length) or does not fit.
        progress: whether calls show a tqdm bar; each may say otherwise.
        **table_arguments: passed to `SolverTable.from_scheduler`: strength (with strength_rounding)
            or begin_index, step_kwargs, and what the scheduler's set_timesteps() takes (mu, ...).

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
        executor: str = "auto",
        guidance_calls: str = "batched",
        progress: bool = True,
        **table_arguments,
    ):
        check_kinds(scheduler, config, table_arguments)
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(
                "dtype must be torch.float32, torch.float16 or torch.bfloat16, got "
                f"{dtype if isinstance(dtype, torch.dtype) else repr(dtype)}"
            )
        known_keywords(AdaptiveSampler, scheduler, table_arguments)
        self.config = config or AdaptiveConfig()
        self.table = solver_of(scheduler, num_inference_steps, self.config, table_arguments)
        if guidance_calls not in GUIDANCE_CALLS:
            raise ValueError(
                f"guidance_calls must be one of {', '.join(map(repr, GUIDANCE_CALLS))}, "
                f"got {guidance_calls!r}"
            )
        self.guidance_calls = guidance_calls
        self.progress = _bool("progress", progress)
        self._told = False  # whether it was said that next to nothing is skipped
        self._known = weakref.WeakSet()  # models that were compared with the config's origin
        self._tables = fill_tables(self.table, self.config)
        self._executors = Executors(executor, self.table, self.config)
        self.dtype = dtype
        self.guidance_scale = guidance_of(guidance_scale)
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
        generator: Generators = None,
        guidance_scale: float | Tensor | None = None,
        threshold: float | Tensor | None = None,
        gather: bool = True,
        callback: Callable[[StepInfo], Tensor | None] | None = None,
        progress: bool | None = None,
    ) -> SamplingResult:
        """Samples B latents from noise.

        Args:
            model: ``model(model_input, timestep, **conditioning)``, rows in, rows out; gets 2B
                rows with guidance, unconditional first. timestep: [rows], the scheduler's units.
                diffusers' U-Nets and transformers as they are (`adaptive_kernels.denoiser`).
            noise: [B, ...] floating, standard normal; scaled here.
            conditioning, unconditional: the model's keyword arguments, with tensors [B, ...] in
                dataclasses and containers that torch.utils._pytree knows; [1, ...] is every
                sample's; NumPy arrays are taken as tensors.
            latents: [B, ...] clean latents to start from (img2img), with a table made with
                `strength` or `begin_index`; noise is added here at the first timestep's level.
                At the first row of an inverse scheduler they are the start itself, and noise
                counts for nothing.
            seed: noise streams of stochastic solvers: an int s gives sample b the stream s + b; a
                sequence or tensor [B] names each. A stream is the same whatever the batch.
            step_noise: [T, B, ...] float32, the solver's noise itself, in place of `seed`.
            generator: a torch.Generator or one for each sample, in place of `seed`: the noise of a
                stochastic solver as diffusers' own loop would draw it, step by step. Drawn before
                the first one, [T, B, ...] float32.
            guidance_scale, threshold: a number or a tensor [B], in place of the sampler's; a scale
                of 1.0 is no guidance, and criteria without a threshold ignore one. Decisions of
                granularity "batch" take one threshold.
            gather: call the model on unfinished samples only; False always sends all rows, for a
                model that closes over per-row data. Graphs always send all rows.
            callback: called with a `StepInfo` after every tick; needs the plain loop. What it
                returns, [B, ...], are the latents from then on, each sample's at its own step
                (`StepInfo.noised` has an image at these levels); None leaves them.
            progress: whether to show a tqdm bar; None as the sampler was made.

        Raises: ValueError, TypeError at the border; what the model raises passes through, or is
            the cause of a `CaptureError` where a graph was asked for; RuntimeError, of which that
            is a kind, where the executor asked for does not work here.
        """
        gather = _bool("gather", gather)
        progress = self.progress if progress is None else _bool("progress", progress)
        scale = self.guidance_scale if guidance_scale is None else guidance_of(guidance_scale)
        is_one = scale is None and (guidance_scale is not None or self._scale_is_one)
        given = (model, noise, latents, seed, step_noise, generator)
        look = self._executors.look()
        start = self._begin(*given, scale, threshold, look)
        guided = scale is not None
        network = NetworkCall(
            model,
            noise.shape,
            guided,
            conditioning,
            # A scale of 1.0 is the conditional half alone, whatever else is given.
            unconditional if guided or not is_one else None,
            gather,
            noise.device,
            self.guidance_calls,
        )
        if isinstance(model, torch.nn.Module) and model not in self._known:
            warn_of_other_network(self.config, model, 3)
            self._known.add(model)
        after_tick = None
        if callback is not None:
            if not callable(callback):
                raise TypeError(f"callback must be callable, got {type(callback).__name__}")

            def after_tick(tick, state):
                edited = callback(info_of(state, tick, noise.shape, self.table))
                if edited is not None:
                    edit(state, edited, noise)

        steps = self.table.num_steps * noise.shape[0]
        with bar_of(steps, progress) as bar:
            result = self._executors.run(
                Job(network, start, gather, after_tick, look),
                bar,
                lambda state, executor, why: result_of(state, noise.shape, executor, why, bar),
            )
        broken = warn_of_nonfinite(result)
        # Once: all calls of a sampler are much alike.
        asked = not self._told and wants_skips(self.config, threshold)
        if asked and (broken or may_be_few(result.nfe, self.table)):
            run = Calls.of(result.refreshed, result.nfe, result.score, result.nonfinite)
            self._told = warn_of_few_skips(self.config, self.table, run, 3)
        return result

    def prepared(self) -> Prepared | None:
        """The captured network and the graphs built on it, to look at or to time; None before."""
        return self._executors.prepared()

    def report(self) -> dict:
        """What the sampler holds, for a program.

        ``{"captures": networks captured so far, "built": executors that stand ready, "memory":
        {"activations": bytes of the captured network, "buffers": bytes around it}}``
        """
        return self._executors.report()

    def close(self) -> None:
        """Waits for the last launch and frees captured graphs; a later call captures again."""
        self._executors.close()

    def __getstate__(self) -> dict:
        own = {"_tables", "_known"}
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, held: dict) -> None:
        vars(self).update(held)
        self._tables, self._known = fill_tables(self.table, self.config), weakref.WeakSet()

    def __repr__(self) -> str:
        return f"AdaptiveSampler({self.table}, criterion {self.config.criterion!r})"

    def __enter__(self) -> "AdaptiveSampler":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def begin(self, model, noise, latents=None, seed=0, step_noise=None, generator=None) -> State:
        """The state before the first step, as a call with the sampler's guidance makes it."""
        return State.of(self.start(model, noise, latents, seed, step_noise, generator))

    def start(self, model, noise, latents=None, seed=0, step_noise=None, generator=None) -> Start:
        """What `begin` makes a state of, and what `State.reset` and `State.admit` take in."""
        given = (model, noise, latents, seed, step_noise, generator)
        return self._begin(*given, self.guidance_scale)

    def _begin(
        self,
        model,
        noise,
        latents,
        seed,
        step_noise,
        generator,
        guidance,
        threshold=None,
        look=None,
    ) -> Start:
        return begin(
            *(self.table, self.config, model, noise),
            latents=latents,
            seed=seed,
            step_noise=step_noise,
            generator=generator,
            guidance_scale=guidance,
            threshold=threshold,
            dtype=self.dtype,
            tables=self._tables,
            look=look,
        )


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return value
