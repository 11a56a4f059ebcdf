"""The engine of a pipeline: prompts encoded in batches, the engine, the VAE in batches."""

import numbers
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
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
# Of another kind than a negative prompt that is not given, so that the halves differ.
_PROBE = "a photo"


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
        for name, value in (("guidance_scale", guidance_scale), ("eta", eta)):
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, (int, float))
            ):
                raise TypeError(f"{name} must be a number, got {value!r}")
        steps = arguments.get("num_inference_steps", 1)
        if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
            raise ValueError(f"num_inference_steps must be an int of at least 1, got {steps!r}")
        check_arguments(pipe, [*arguments, *(["eta"] if eta else [])])
        for name, value in arguments.items():
            if name in _REFUSED:
                raise ValueError(f"{name} must be left out for an engine of a pipeline")
            if "prompt" in name:
                raise ValueError(f"{name} must be given to each request, in its conditioning")
            plain = {"true_cfg_scale": 1.0, "guidance_rescale": 0.0}.get(name, value)
            if value != plain:
                raise ValueError(
                    f"{name} must be {plain:g} for an engine of a pipeline, got {value}: the "
                    "engine combines the halves as mu + g (mc - mu)"
                )
        self.pipe, self.output_type = pipe, output_type
        self._encode_batch, self._decode_batch = int(encode_batch), int(decode_batch)
        network = next(iter(networks.values()))
        arguments = {**arguments, "output_type": "latent"} | ({"eta": eta} if eta else {})
        preamble = Preamble(pipe, network, arguments)
        scale = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
        first = preamble.first({"prompt": [_PROBE], **scale}, [0], eta)
        two = preamble.call({"prompt": [_PROBE] * 2, **scale}, [0, 1])
        model = PipelineNetwork(network, first, two)
        _check(pipe, first, model)
        self._free()
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
            requests: prompts, of seed 0, or `Request` whose `conditioning` holds those of the
                pipeline's call (``{"prompt": ..., "negative_prompt": ...}``) or their embeddings;
                None as `Engine.run` has it.
            ordered, on_error, progress: as `Engine.run` has them; with "raise" an image that
                cannot be made ends the run as a request does that cannot be taken in.

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
        running = self._images(samples, prompts, on_error)
        # As the engine's own: what has begun ends with its iterator.
        next(running)
        return running

    def _images(
        self, samples: Iterator[Sample | None], prompts: Prompts, on_error: str
    ) -> Iterator[Any]:
        waiting: list[Sample] = []
        failure: RequestError | None = None
        try:
            yield None
            for sample in samples:
                if sample is not None:
                    original = prompts.originals.pop(sample.number)
                    waiting.append(replace(sample, request=original))
                # While the queue has none to give, nobody waits for others.
                if sample is None or len(waiting) >= self._decode_batch:
                    failure = yield from self._decoded(waiting, failure)
                if failure is not None and on_error == "raise":
                    prompts.stop()
            failure = yield from self._decoded(waiting, failure)
        except Exception:
            yield from self._decoded(waiting, None)
            raise
        finally:
            samples.close()
            self._free()
        if failure is not None and on_error == "raise":
            raise failure

    def _decoded(
        self, waiting: list[Sample], failure: RequestError | None
    ) -> Generator[Sample, None, RequestError | None]:
        """Hands out what is waiting, with images; each is let go of as it goes out.

        One whose image cannot be made keeps its latents and has the error. Returns the first such
        failure, or the one of before.
        """
        made = [sample for sample in waiting if sample.error is None]
        images, errors = self._decode(made) if self.output_type != "latent" else ({}, {})
        while waiting:
            sample = waiting.pop(0)
            error = errors.pop(sample.number, None)
            if error is not None and failure is None:
                failure = RequestError(sample.id, f"no image came of its latents: {error}")
                failure.__cause__ = error
            image = images.pop(sample.number, None)
            yield replace(sample, image=image, error=sample.error if error is None else error)
        return failure

    def _free(self) -> None:
        """Lets a pipeline that keeps its parts elsewhere put them back there."""
        if hasattr(self.pipe, "maybe_free_model_hooks"):
            self.pipe.maybe_free_model_hooks()

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
        # In its own precision, as the pipeline does.
        unconditional, conditional = output.chunk(2)
        output = unconditional + first.guidance_scale * (conditional - unconditional)
    if output.shape != first.handed.shape:
        raise ValueError(
            f"pipe must hand on its network's output whole, got {kind} with "
            f"{tuple(first.handed.shape)} of {tuple(output.shape)}"
        )
    handed = first.handed.float()
    error = (output.float() - handed).norm() / handed.norm()
    if not error <= 4 * torch.finfo(first.output.dtype).eps:
        raise ValueError(
            f"pipe must hand mu + g (mc - mu) of its network's halves to the scheduler, which "
            f"{kind} does not with these arguments (off by {float(error):.2g} of it): rescaled "
            "guidance or the like"
        )
