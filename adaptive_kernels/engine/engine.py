"""The engine: a queue of samples through the slots of one network, each at its own pace."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ..rules.config import AdaptiveConfig
from ..solvers.keywords import known_keywords
from .border import batch_of
from .pipeline.engine import PipelineEngine
from .request import Queue, Request
from .running import samples
from .sample import Sample
from .timeline import timeline_picture

ON_ERROR = ("raise", "yield")


class Engine:
    """Makes many samples with one network, whose batch stays full while there are requests.

        while there is a request or a sample under way:
            every empty slot takes the next request     # in queue order
            model_output = network(model_input, timestep)
            advance(state)                              # every sample to its next network call
            samples at their end leave their slots

    Samples of one batch stand at different steps, each as far as its own decisions let it go, so
    that T steps take the time of mean(NFE) network calls per batch, where a batch that waits for
    its slowest sample takes max(NFE). The host reads once per tick where the samples stand.

    A result depends on its request alone, not on slots, neighbours or order, bit for bit where the
    network treats rows so: one whose kernels differ by batch size rounds differently.

    Args:
        model: ``model(model_input, timestep, **conditioning)``, rows in, rows out; with guidance
            unconditional rows first. It gets as many rows as are in use.
        scheduler: a diffusers scheduler (left untouched) or a `SolverTable`.
        num_inference_steps: solver steps; None as `AdaptiveSampler` has it.
        slots: B, samples that are under way at a time.
        shape: of one sample's latents, such as (4, 64, 64).
        config: criterion, threshold and limits; None is `AdaptiveConfig()`. Samples decide alone:
            granularity "batch" is refused where there is more than one slot.
        guidance_scale: of requests that have none; None or 1.0: no guidance.
        unconditional: keyword arguments of the unconditional half, tensors [1, ...], of requests
            that have none.
        dtype: of the network's input; None takes the model's.
        device: of the latents and conditions; None takes that of the model's first parameter, or
            the CPU.
        gather: call the network on the rows in use alone; False sends all rows always, to a
            network that is compiled for one batch size, say.
        strength_rounding: how requests' strengths are counted, as `SolverTable.from_scheduler`
            has it.
        **table_arguments: passed to `SolverTable.from_scheduler`.

    Raises: UnsupportedSchedulerError, ValueError, TypeError naming the argument.

    Source: AdaptiveDiffusion, arXiv 2410.09873, per sample; refilled slots as in continuous
    batching (Orca, OSDI 2022).
    """

    def __init__(
        self,
        model: Callable,
        scheduler: Any,
        num_inference_steps: int | None = None,
        *,
        slots: int = 16,
        shape: Sequence[int],
        config: AdaptiveConfig | None = None,
        guidance_scale: float | Tensor | None = None,
        unconditional: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        gather: bool = True,
        strength_rounding: str | None = None,
        **table_arguments: Any,
    ):
        known_keywords(Engine, scheduler, table_arguments)
        self._batch = batch_of(
            *(model, scheduler, num_inference_steps, slots, shape, config, guidance_scale),
            **{"unconditional": unconditional, "dtype": dtype, "device": device, "gather": gather},
            strength_rounding=strength_rounding,
            table_arguments=table_arguments,
        )
        self.table, self.config = self._batch.solvers.table, self._batch.config
        self.slots, self.shape = self._batch.slots, self._batch.shape
        self.dtype = self._batch.dtype
        self._lock = threading.Lock()
        # Weakly: an iterator that is let go of ends its run.
        self._running: Callable[[], Iterator[Sample] | None] = lambda: None
        self._closed = False

    @classmethod
    def from_pipeline(
        cls,
        pipe: Any,
        num_inference_steps: int | None = None,
        *,
        slots: int = 16,
        config: AdaptiveConfig | None = None,
        guidance_scale: float | None = None,
        gather: bool = True,
        encode_batch: int = 8,
        decode_batch: int = 4,
        output_type: str = "pil",
        eta: float = 0.0,
        **arguments: Any,
    ) -> PipelineEngine:
        """An engine whose requests are prompts: ``for sample in engine.run(["a red ball", ...])``.

        Prompts, noise and timesteps are the pipeline's own doing: its call is run up to the first
        network call. Stable Diffusion, SDXL, Stable Diffusion 3 and Flux give images; others that
        call one network once a step give latents. The pipeline stays as it is.

        Args:
            pipe: a text-to-image pipeline of diffusers, not enabled.
            num_inference_steps: None takes the config's, else the pipeline's default.
            slots, config, gather: as the engine has them.
            guidance_scale: None takes the pipeline's default.
            encode_batch: prompts that are encoded together, and taken ahead at most.
            decode_batch: images that the VAE makes together; 1 hands each out at once.
            output_type: of ``sample.image``: "pil", "np", "pt", or "latent" for none.
            eta: of the scheduler's step(), where it takes one.
            **arguments: of the pipeline's call, the same for all prompts: height, width, ...

        Raises: TypeError, ValueError naming the argument; UnsupportedSchedulerError.
        """
        if config is not None and not isinstance(config, AdaptiveConfig):
            raise TypeError(f"config must be an AdaptiveConfig, got {type(config).__name__}")
        config = AdaptiveConfig() if config is None else config
        if num_inference_steps is None:
            num_inference_steps = config.num_inference_steps
        if num_inference_steps is not None:
            arguments["num_inference_steps"] = num_inference_steps

        def make(model, table, shape, dtype, device, scale) -> Engine:
            options = {"slots": slots, "shape": shape, "config": config, "gather": gather}
            options |= {"guidance_scale": scale, "dtype": dtype, "device": device}
            return cls(model, table, **options)

        return PipelineEngine(
            *(pipe, make),
            encode_batch=encode_batch,
            decode_batch=decode_batch,
            output_type=output_type,
            guidance_scale=guidance_scale,
            eta=eta,
            arguments=arguments,
        )

    def run(
        self,
        requests: Iterable[Request | None],
        *,
        ordered: bool = False,
        on_error: str = "raise",
        progress: bool = True,
        gaps: bool = False,
    ) -> Iterator[Sample]:
        """Samples the requests; an iterator over the results as they are finished.

        Nothing happens but while the next result is waited for, and a request is taken only when
        there is a slot for it: a slow consumer holds the engine back, and an endless iterable
        streams. A run that is left early (``break``) is closed with its iterator.

        Args:
            requests: an iterable of `Request`; None in the place of one: there is none yet, and
                it is asked again after the next tick.
            ordered: results in queue order; else as they are finished.
            on_error: of a request that cannot be taken in: "yield" hands out a `Sample` with
                ``error`` in its place; "raise" takes no further request, finishes what is under
                way, and then raises a `RequestError`.
            progress: whether to show a tqdm bar.
            gaps: hand out None, once a tick, while the requests have none to give: for who
                gathers results and would not keep them waiting.

        Raises: TypeError, ValueError naming the argument; RuntimeError while another run of this
            engine is under way, or after `close`; within the iteration RequestError, and
            EngineError with the unfinished ids where the network fails, after what was finished.
        """
        for name, value in (("ordered", ordered), ("progress", progress), ("gaps", gaps)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be a bool, got {value!r}")
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be 'raise' or 'yield', got {on_error!r}")
        queue = Queue(requests)
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if getattr(self._running(), "gi_frame", None) is not None:
                raise RuntimeError(
                    "a run of this engine is under way: go to its end, or close() its iterator"
                )
            running = samples(
                *(self._batch, queue, lambda: self._closed),
                **{"ordered": ordered, "on_error": on_error, "progress": progress, "gaps": gaps},
            )
            self._running = weakref.ref(running)
            # It must have begun: an iterator that never did has nothing that closing it could end.
            next(running)
        return running

    def report(self) -> dict[str, Any]:
        """The last run, or the one under way, for a program.

        samples, failed: requests with a result and without; nonfinite: of the former, those with
        NaN or Inf. ticks: network calls. mean_nfe: calls per sample. occupancy: share of the slots
        that held a sample, mean over ticks; slots_in_use: how many did, tick by tick. idle_rows:
        empty slots, summed over ticks. network_rows: rows of the network in all; wasted_rows: of
        them, those that nobody waited for. network_seconds: within the network's calls, by the
        device's clock on a GPU; tick_seconds: in ticks, the network included; seconds: in all, the
        consumer's time included. request_seconds, queue_seconds: mean, p50, p95 and p99 of the time
        of a request in its slot, and of its wait for one, from the beginning of the run where the
        requests have a length, else from when they were taken; None without results. Times and
        slots_in_use are of the last 10,000. memory: bytes of the buffers around the network.
        """
        return {**self._batch.record.report(), "memory": self._batch.bytes()}

    def timeline_picture(self, path: str | PathLike, title: str = "") -> None:
        """Draws the last run: slots by ticks, coloured by request, and the occupancy above.

        Args:
            path: the PNG file to write. title: one line at the top; "" says what was run.

        Raises: ValueError where nothing was sampled yet; ImportError without matplotlib.
        """
        timeline_picture(path, self._batch.record, title)

    def close(self) -> None:
        """Ends the run that is under way, and frees the buffers; a later run is refused.

        From another thread, or from within the requests: after the tick at hand.
        """
        self._closed = True
        running = self._running()
        if running is not None:
            try:
                running.close()
            except ValueError:
                # It is at work, and looks before its next tick.
                return
        with self._lock:
            self._batch.free()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self.slots} slots of {list(self.shape)}, {self.table})"
