"""Requests that hold prompts, turned into those of the engine a few at a time."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..request import Refused, Request, seed_of
from .network import PipelineNetwork
from .preamble import Call, Preamble, check_arguments


class Prompts:
    """An iterable of the engine's requests, made of prompts, requests with prompts, and None.

    A request's `conditioning` holds arguments of the pipeline's call: prompts, negative prompts
    and their embeddings.

    Args:
        given: what the user gave. size: how many are encoded at a time.
    """

    def __init__(self, given: Iterable, encoder: "Encoder", size: int):
        self.originals: dict[int, Any] = {}
        self._given, self._encoder, self._size = iter(given), encoder, size
        self._number = 0
        self._stopped = False

    def stop(self) -> None:
        """Gives no further request."""
        self._stopped = True

    def __iter__(self) -> Iterator[Request | Refused | None]:
        ended = False
        while not ended and not self._stopped:
            chunk: list[Any] = []
            gap = False
            try:
                for item in itertools.islice(self._given, self._size):
                    gap = item is None
                    if gap:
                        break
                    chunk.append(item)
            except Exception as error:
                yield from self._encoded(chunk)
                raise error
            ended = not gap and len(chunk) < self._size
            yield from self._encoded(chunk)
            if gap:
                yield None

    def _encoded(self, chunk: list[Any]) -> Iterator[Request | Refused]:
        for item, request in zip(chunk, self._encoder.encode(chunk), strict=True):
            if self._stopped:
                return
            self.originals[self._number] = item
            self._number += 1
            yield request


class SizedPrompts(Prompts):
    """The same of something whose length is known."""

    def __init__(self, given: Sequence, encoder: "Encoder", size: int):
        super().__init__(given, encoder, size)
        self._length = len(given)

    def __len__(self) -> int:
        return self._length


class Encoder:
    """Encodes prompts by the pipeline's own code, those of a kind together."""

    def __init__(self, preamble: Preamble, network: PipelineNetwork, guidance_scale: float | None):
        self.preamble, self.network, self.guidance_scale = preamble, network, guidance_scale

    def encode(self, items: list[Any]) -> list[Request | Refused]:
        """One for each, in order."""
        found: list[Request | Refused | None] = [None] * len(items)
        groups: dict[tuple, list[tuple[int, Request]]] = {}
        for place, item in enumerate(items):
            try:
                request = self._request(item)
                scale = request.guidance_scale
                scale = self.guidance_scale if scale is None else float(scale)
                groups.setdefault((scale, *sorted(request.conditioning)), []).append(
                    (place, request)
                )
            except Exception as error:
                found[place] = Refused(getattr(item, "id", None), error)
        for (scale, *_), group in groups.items():
            for (place, _), made in zip(group, self._group(group, scale), strict=True):
                found[place] = made
        return found

    def _request(self, item: Any) -> Request:
        if isinstance(item, str):
            return Request(conditioning={"prompt": item})
        if not isinstance(item, Request):
            raise TypeError(f"a request must be a prompt or a Request, got {type(item).__name__}")
        for name in ("unconditional", "latents", "strength"):
            if getattr(item, name) is not None:
                hint = "; conditioning takes a negative_prompt" if name == "unconditional" else ""
                raise ValueError(f"{name} must be None for an engine of a pipeline{hint}")
        seed_of(item)
        if not isinstance(item.conditioning, dict) or not item.conditioning:
            raise TypeError(
                "conditioning must be a dict of the pipeline's arguments, such as "
                f"{{'prompt': 'a red ball'}}, got {item.conditioning!r}"
            )
        check_arguments(self.preamble.pipe, item.conditioning)
        for name, value in item.conditioning.items():
            if "prompt" not in name:
                raise ValueError(
                    f"conditioning must be prompts, negative prompts and their embeddings, got "
                    f"{name}: what else the pipeline takes is the engine's, the same for all"
                )
            if not isinstance(value, (str, Tensor)):
                raise TypeError(f"{name} must be a str or a tensor [1, ...], got {value!r}")
        scale = item.guidance_scale
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
            raise TypeError(f"guidance_scale must be a number, got {scale!r}")
        return item

    def _group(self, group: list, scale: float | None) -> list[Request | Refused]:
        """Requests of one scale and the same arguments; one by one where all together fail."""
        requests = [request for _, request in group]
        try:
            call = self.preamble.call(
                _stacked([request.conditioning for request in requests], scale),
                [seed_of(request) for request in requests],
            )
            if len(call.latents) != len(requests):
                raise ValueError(
                    f"pipe must make one sample of a request, got {len(call.latents)} of "
                    f"{len(requests)}"
                )
            self.network.check(call)
            return [self._made(call, n, request, scale) for n, request in enumerate(requests)]
        except Exception as error:
            if len(group) > 1:
                return [self._group([one], scale)[0] for one in group]
            return [Refused(requests[0].id, error)]

    def _made(self, call: Call, number: int, request: Request, scale: float | None) -> Request:
        conditioning, unconditional = self.network.rows(call, number)
        noise = request.noise
        if noise is None:
            noise = call.latents[number].float() / self.network.init_noise_sigma
        return replace(
            request,
            conditioning=conditioning,
            unconditional=unconditional,
            # Where the pipeline makes one half, its network takes the scale as a condition.
            guidance_scale=1.0 if unconditional is None else scale,
            noise=noise,
        )


def _stacked(conditions: list[dict[str, Any]], scale: float | None) -> dict[str, Any]:
    """Arguments of one call for several samples: tensors [1, ...] stacked, all else in lists."""
    found: dict[str, Any] = {} if scale is None else {"guidance_scale": scale}
    for name in conditions[0]:
        values = [condition[name] for condition in conditions]
        tensors = all(isinstance(value, Tensor) for value in values)
        found[name] = torch.cat(values) if tensors else values
    return found
