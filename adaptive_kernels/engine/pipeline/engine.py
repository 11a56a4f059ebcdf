"""The engine of a pipeline: prompts encoded in batches, the engine, the VAE in batches."""

import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from os import PathLike
from typing import Any

import torch

from ...pipelines.enable import of
from ...pipelines.networks import check_pipeline, find
from ..errors import RequestError
from ..request import Request
from ..sample import Sample
from .images import check_output, decode
from .network import PipelineNetwork
from .preamble import First, Preamble, check_arguments
from .prompts import Encoder, Prompts, SizedPrompts

# Arguments of a pipeline's call that change what it does from step to step, or how often.
_REFUSED = (
    *("callback_on_step_end", "callback", "callback_steps", "skip_guidance_layers"),
    *("denoising_end", "denoising_start", "latents", "generator", "output_type", "return_dict"),
    *("num_images_per_prompt", "image", "mask_image", "strength", "pag_scale"),
)


class PipelineEngine:
    """Many prompts through the slots of a pipeline's network; `Engine.from_pipeline` makes it.

    The pipeline itself encodes prompts, draws the noise and sets its scheduler; its loop is the
    engine's. It stays as it is, and may be called between runs.
    """

    def __init__(
        self,
        pipe: Any,
        make: Callable[..., Any],
        *,
        encode_batch: int,
        decode_batch: int,
        output_type: str,
        guidance_scale: float | None,
        eta: float,
        arguments: dict[str, Any],
    ):
        """make: (model, table, shape, dtype, device, guidance_scale) -> Engine; the rest as
        `Engine.from_pipeline` has it."""
        for name, value in (("encode_batch", encode_batch), ("decode_batch", decode_batch)):
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        check_pipeline(pipe)
        check_output(pipe, output_type)
        if of(pipe) is not None:
            raise ValueError("pipe must be a plain one, got an enabled one: disable_adaptive it")
        networks = find(pipe, None)
        if len(networks) != 1:
            raise ValueError(f"pipe must have one network, got {', '.join(networks)}")
        check_arguments(pipe, arguments)
        for name, value in arguments.items():
            if name in _REFUSED:
                raise ValueError(f"{name} must be left out for an engine of a pipeline")
            if name == "true_cfg_scale" and value != 1:
                raise ValueError(
                    f"true_cfg_scale must be 1 for an engine of a pipeline, got {value}: it calls "
                    "the network twice a step"
                )
        self.pipe, self.output_type = pipe, output_type
        self._encode_batch, self._decode_batch = int(encode_batch), int(decode_batch)
        network = next(iter(networks.values()))
        arguments = {**arguments, "output_type": "latent"} | ({"eta": eta} if eta else {})
        preamble = Preamble(pipe, network, arguments)
        scale = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
        first = preamble.first({"prompt": [""], **scale}, [0], eta)
        model = PipelineNetwork(
            network, first, preamble.call({"prompt": [""] * 2, **scale}, [0, 1])
        )
        _check(pipe, first, model)
        self.size = first.size
        own = first.guidance_scale if model.halves == 2 else None
        # A network that takes its guidance as a condition is not guided by the engine.
        self._encoder = Encoder(preamble, model, guidance_scale)
        device, shape = first.latents.device, tuple(first.latents.shape[1:])
        self.engine = make(model, first.table, shape, model.dtype, device, own)

    def run(
        self,
        requests: Iterable,
        *,
        ordered: bool = False,
        on_error: str = "raise",
        progress: bool = True,
    ) -> Iterator[Sample]:
        """Samples prompts; an iterator over results with ``image``, as they are finished.

        Prompts are encoded `encode_batch` at a time, so that as many are taken ahead, and images
        decoded `decode_batch` at a time, so that a result may wait for others; not while the queue
        has none to give. A sample whose image cannot be made has its latents and the error.

        Args:
            requests: prompts, or `Request` whose `conditioning` holds arguments of the pipeline's
                call (``{"prompt": ..., "negative_prompt": ...}``); None as `Engine.run` has it.
            ordered, on_error, progress: as `Engine.run` has them.

        Raises: as `Engine.run` does.
        """
        if isinstance(requests, (str, bytes, Mapping, Request)):
            raise TypeError(
                f"requests must be an iterable of prompts, got one {type(requests).__name__}"
            )
        try:
            iter(requests)
        except TypeError:
            raise TypeError(
                f"requests must be an iterable of prompts, got {type(requests).__name__}"
            ) from None
        kind = SizedPrompts if isinstance(requests, Sized) else Prompts
        prompts = kind(requests, self._encoder, self._encode_batch)
        options = {"ordered": ordered, "on_error": on_error, "progress": progress}
        samples = self.engine.run(prompts, **options, gaps=True)
        running = self._images(samples, prompts.originals, on_error)
        # As the engine's own: what has begun ends with its iterator.
        next(running)
        return running

    def _images(
        self, samples: Iterator[Sample | None], originals: dict[int, Any], on_error: str
    ) -> Iterator[Any]:
        waiting: list[Sample] = []
        try:
            yield None
            for sample in samples:
                if sample is not None:
                    waiting.append(replace(sample, request=originals.pop(sample.number)))
                # While the queue has none to give, nobody waits for others.
                if sample is None or len(waiting) >= self._decode_batch:
                    yield from self._decoded(waiting, on_error)
            yield from self._decoded(waiting, on_error)
        except Exception:
            yield from self._decoded(waiting, "yield")
            raise
        finally:
            samples.close()
            if hasattr(self.pipe, "maybe_free_model_hooks"):
                self.pipe.maybe_free_model_hooks()

    def _decoded(self, waiting: list[Sample], on_error: str) -> Iterator[Sample]:
        """Hands out what is waiting, with images; each is let go of as it goes out.

        One whose image cannot be made keeps its latents and has the error; with "raise" a
        `RequestError` follows the others.
        """
        made = [sample for sample in waiting if sample.error is None]
        images, errors = self._decode(made) if self.output_type != "latent" else ({}, {})
        while waiting:
            sample = waiting.pop(0)
            error = errors.get(sample.number, sample.error)
            yield replace(sample, image=images.pop(sample.number, None), error=error)
        if errors and on_error == "raise":
            first = next(sample for sample in made if sample.number in errors)
            error = errors[first.number]
            raise RequestError(first.id, f"no image came of its latents: {error}") from error

    def _decode(self, samples: list[Sample]) -> tuple[dict[int, Any], dict[int, Exception]]:
        """Images, or why there is none, by number; one by one where all together fail."""
        if not samples:
            return {}, {}
        latents = torch.stack([sample.latents for sample in samples]).to(self.engine.dtype)
        try:
            found = decode(self.pipe, latents, self.output_type, self.size)
        except Exception as error:
            if len(samples) == 1:
                return {}, {samples[0].number: error}
        else:
            return {s.number: image for s, image in zip(samples, found, strict=True)}, {}
        images: dict[int, Any] = {}
        errors: dict[int, Exception] = {}
        for sample in samples:
            image, error = self._decode([sample])
            images |= image
            errors |= error
        return images, errors

    def report(self) -> dict[str, Any]:
        """As `Engine.report`."""
        return self.engine.report()

    def timeline_picture(self, path: str | PathLike, title: str = "") -> None:
        """As `Engine.timeline_picture`."""
        self.engine.timeline_picture(path, title)

    def close(self) -> None:
        """As `Engine.close`; the pipeline stays."""
        self.engine.close()

    def __enter__(self) -> "PipelineEngine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PipelineEngine({type(self.pipe).__name__}, {self.engine!r})"


def _check(pipe: Any, first: First, model: PipelineNetwork) -> None:
    """Raise ValueError unless the pipeline's first step is what the engine would do."""
    kind = type(pipe).__name__
    if model.halves not in (1, 2) or first.model_input.shape[1:] != first.latents.shape[1:]:
        raise ValueError(
            f"pipe must feed its network the latents, once or twice, got {kind} with "
            f"{tuple(first.model_input.shape)} of {tuple(first.latents.shape)}"
        )
    output = first.output
    if model.halves == 2:
        unconditional, conditional = output.float().chunk(2)
        output = unconditional + first.guidance_scale * (conditional - unconditional)
    if output.shape != first.handed.shape:
        raise ValueError(
            f"pipe must hand on its network's output whole, got {kind} with "
            f"{tuple(first.handed.shape)} of {tuple(output.shape)}"
        )
    handed = first.handed.float()
    error = (output.float() - handed).norm() / handed.norm()
    if not error <= 20 * torch.finfo(first.output.dtype).eps:
        raise ValueError(
            f"pipe must hand mu + g (mc - mu) of its network's halves to the scheduler, which "
            f"{kind} does not with these arguments (off by {float(error):.2g} of it): rescaled "
            "guidance or the like"
        )
