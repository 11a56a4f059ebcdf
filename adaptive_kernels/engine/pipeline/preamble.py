"""A pipeline's own call, up to its first network call: prompts encoded, noise drawn, steps set.

Nothing of it is written anew: the pipeline runs as it is, with stand-ins that listen and end it.
"""

import contextlib
import difflib
import inspect
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...pipelines.networks import method
from ...pipelines.standin import StandIn, put, take
from ...solvers.table import SolverTable

# Stand-ins of two threads on one pipeline would be taken away in any order.
_LOCK = threading.RLock()
# What networks call their latents.
LATENTS = ("sample", "hidden_states")


class _Over(Exception):
    """Ends the pipeline's call: all that was asked for is known."""


@dataclass(frozen=True)
class Call:
    """A pipeline's first network call.

    model_input: [M, ...], under the keyword `name`. timestep: () or [M]. keywords: the rest of the
    call. latents: [b, ...], what `prepare_latents` gave. size: (height, width) in pixels or None.
    """

    name: str
    model_input: Tensor
    timestep: Tensor
    keywords: dict[str, Any]
    latents: Tensor
    size: tuple[int, int] | None


@dataclass(frozen=True)
class First(Call):
    """The same with what came of it.

    output: [M, ...] of the network. handed: [b, ...], what the scheduler's step() got. table: of
    the scheduler as the pipeline has set it. guidance_scale: the pipeline's; 1.0 where it has none.
    """

    output: Tensor
    handed: Tensor
    table: SolverTable
    guidance_scale: float


class Preamble:
    """Runs a pipeline up to its first network call.

    Args:
        network: the pipeline's. arguments: of its call, the same always.
    """

    def __init__(self, pipe: Any, network: torch.nn.Module, arguments: dict[str, Any]):
        self.pipe, self.network, self.arguments = pipe, network, arguments
        self._scheduler = pipe.scheduler
        # A compiled module's own takes anything.
        plain = getattr(network, "_orig_mod", network)
        self._names = [*inspect.signature(plain.forward).parameters]

    def call(self, arguments: dict[str, Any], seeds: Sequence[int]) -> Call:
        """The first network call for some samples; the network does not run.

        Args:
            arguments: of the pipeline's call beside the usual ones, lists with one per sample.
        """
        return self._run(arguments, seeds, whole=False)[0]

    def first(self, arguments: dict[str, Any], seeds: Sequence[int], eta: float) -> First:
        """The same with the network run, until the scheduler's step().

        Raises: ValueError where the pipeline calls its network twice, or in a way nobody knows.
        """
        call, output, handed, table, scale = self._run(arguments, seeds, whole=True, eta=eta)
        return First(**vars(call), output=output, handed=handed, table=table, guidance_scale=scale)

    def _run(self, arguments, seeds, whole: bool, eta: float = 0.0) -> list:
        if self.pipe.scheduler is not self._scheduler:
            raise ValueError("pipe must keep the scheduler that its engine was made with")
        found: dict[str, Any] = {"calls": 0}
        thread = threading.get_ident()

        def listening(handle):
            def run(standin: StandIn, args: tuple, kwargs: dict) -> Any:
                # Other threads' calls are none of ours.
                if threading.get_ident() != thread:
                    return standin.original(*args, **kwargs)
                return handle(standin, args, kwargs)

            return run

        def prepare_latents(standin, args, kwargs):
            result = standin.original(*args, **kwargs)
            given = inspect.signature(standin.original).bind(*args, **kwargs).arguments
            found["latents"] = result[0] if isinstance(result, tuple) else result
            found["size"] = tuple(given[n] for n in ("height", "width") if n in given)
            return result

        def network(standin, args, kwargs):
            found["calls"] += 1
            if found["calls"] > 1:
                return standin.original(*args, **kwargs)
            keywords = dict(zip(self._names, args, strict=False)) | kwargs
            found["keywords"] = keywords
            if not whole:
                raise _Over
            found["table"] = SolverTable.from_prepared(
                self.pipe.scheduler, step_kwargs=self._step_kwargs(eta)
            )
            output = standin.original(*args, **kwargs)
            found["output"] = output[0] if isinstance(output, tuple) else output.sample
            return output

        def step(standin, args, kwargs):
            found["handed"] = args[0] if args else kwargs["model_output"]
            found["scale"] = self._scale()
            raise _Over

        stands = self._standing(
            (self.pipe, "prepare_latents", listening(prepare_latents)),
            (self.pipe, "progress_bar", listening(_no_bar)),
            (self.network, method(self.network), listening(network)),
            (self.pipe.scheduler, "step", listening(step)),
        )
        with _LOCK, stands:
            generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
            with contextlib.suppress(_Over), torch.no_grad():
                self.pipe(**self.arguments, **arguments, generator=generators)
        call = self._call(found)
        if not whole:
            return [call]
        if found["calls"] != 1:
            raise ValueError(
                f"pipe must call its network once a step, got {type(self.pipe).__name__} with "
                f"{found['calls']} calls (enable_adaptive serves those)"
            )
        return [call, *(found[name] for name in ("output", "handed", "table", "scale"))]

    def _call(self, found: dict[str, Any]) -> Call:
        missing = [name for name in ("keywords", "latents") if name not in found]
        if missing:
            what = "call its network" if "keywords" in missing else "prepare its latents itself"
            raise ValueError(f"pipe must {what}, which {type(self.pipe).__name__} does not")
        keywords = dict(found["keywords"])
        name = next((name for name in LATENTS if name in keywords), None)
        if name is None or "timestep" not in keywords:
            raise ValueError(
                f"pipe must call its network with {' or '.join(LATENTS)} and timestep, got "
                f"{', '.join(keywords)}"
            )
        keywords.pop("return_dict", None)
        timestep = torch.as_tensor(keywords.pop("timestep"))
        size = found["size"] if len(found["size"]) == 2 else None
        return Call(name, keywords.pop(name), timestep, keywords, found["latents"], size)

    def _scale(self) -> float:
        scale = getattr(self.pipe, "guidance_scale", 1.0)
        return float(scale) if isinstance(scale, (int, float)) else 1.0

    def _step_kwargs(self, eta: float) -> dict[str, Any]:
        if not eta:
            return {}
        if "eta" not in inspect.signature(self.pipe.scheduler.step).parameters:
            name = type(self.pipe.scheduler).__name__
            raise ValueError(f"eta must be 0 for {name}, whose step() takes none, got {eta}")
        return {"eta": eta}

    @contextlib.contextmanager
    def _standing(self, *given: tuple) -> Iterator[None]:
        standins: list[StandIn] = []
        try:
            for owner, name, handler in given:
                standins.append(put(owner, name, handler))
            yield
        finally:
            while standins:
                take(standins.pop())


def check_arguments(pipe: Any, names: Iterable[str]) -> None:
    """Raise TypeError for an argument that a pipeline does not have, whatever it swallows."""
    known = inspect.signature(type(pipe).__call__).parameters
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise TypeError(f"{type(pipe).__name__} has no argument {name!r}{hint}")


def _no_bar(standin: StandIn, args: tuple, kwargs: dict) -> tqdm:
    return tqdm(*args, **{**kwargs, "disable": True})
