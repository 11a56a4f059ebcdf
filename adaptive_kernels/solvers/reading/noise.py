"""The noise that a scheduler calls for, given to it and written down."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .errors import ProbeError

# No scheduler draws more often in one step; CogVideoXDPMScheduler draws twice and uses one.
DRAWS = 2
_CASTS = (Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as)
_OTHER = {
    *(torch.rand, torch.rand_like, torch.randint, torch.randint_like, torch.normal),
    *(torch.bernoulli, torch.multinomial, torch.poisson, Tensor.normal_, Tensor.uniform_),
    *(Tensor.bernoulli_, Tensor.exponential_, Tensor.log_normal_, Tensor.cauchy_),
}


@dataclass(frozen=True)
class Draw:
    """One call of a step for standard normal noise."""

    dtype: torch.dtype | None  # None: that of the model output
    own: bool  # whether from the generator that step() is given, and not from the global one
    path: bool = False  # whether the scheduler's own noise_sampler gives it, from a Brownian path


class Draws:
    """Every step's calls for noise. noise_at(i, number of the draw) gives it."""

    def __init__(self, noise_at: Callable[[int, int], Tensor], generator: torch.Generator) -> None:
        self.noise_at, self.generator = noise_at, generator
        self.rows: list[list[Draw]] = []
        self.shape: torch.Size | None = None  # of the latents
        self._intervals: list[tuple[float, float]] = []

    def begin(self, latents: Tensor) -> None:
        """The next step begins."""
        self.rows.append([])
        self.shape = latents.shape

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype | None, generator: Any) -> Tensor:
        if tuple(shape) != tuple(self.shape):
            raise ProbeError(
                f"step {len(self.rows) - 1} draws noise of shape {tuple(shape)} for latents of "
                f"shape {tuple(self.shape)}, where a table draws for every element"
            )
        if generator not in (None, self.generator):
            raise ProbeError(f"step {len(self.rows) - 1} draws noise from a generator of its own")
        return self._give(Draw(dtype, generator is self.generator))

    def path(self, sigma: Any, sigma_next: Any) -> Tensor:
        """Stands for a noise sampler over a Brownian path: independent draws, intervals apart."""
        low, high = sorted((float(sigma), float(sigma_next)))
        if any(low < end and high > begin for begin, end in self._intervals):
            raise ProbeError(
                f"step {len(self.rows) - 1} draws from its Brownian path where an earlier step has "
                "drawn, so that its noise is not independent of that step's, as a table's is; "
                "algorithm_type='sde-dpmsolver++' of DPMSolverMultistepScheduler draws anew"
            )
        self._intervals.append((low, high))
        return self._give(Draw(None, own=False, path=True))

    def _give(self, drawn: Draw) -> Tensor:
        i, count = len(self.rows) - 1, len(self.rows[-1])
        if count == DRAWS:
            raise ProbeError(f"step {i} draws noise more than {DRAWS} times")
        self.rows[-1].append(drawn)
        return self.noise_at(i, count)


class Float64(TorchFunctionMode):
    """Keep vectors in float64 where a scheduler casts them, and give it the noise we choose.

    Only vectors: a scheduler's own scalars keep their dtype, so that the coefficients are the ones
    it uses, with the rounding of its float32 sigmas.
    """

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self.draws = draws

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.randn_like:
            dtype = kwargs.get("dtype")
            return self.draws.draw(args[0].shape, self._named(dtype), kwargs.get("generator"))
        if func is torch.randn:
            size = args or (kwargs["size"],)
            shape = tuple(size[0]) if isinstance(size[0], (tuple, list)) else size
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            return self.draws.draw(shape, self._named(dtype), kwargs.get("generator"))
        if func in _OTHER:
            raise ProbeError(
                f"step {len(self.draws.rows) - 1} draws random numbers with {func.__name__}, where "
                "a table knows the normal ones of torch.randn and torch.randn_like"
            )
        out = func(*args, **kwargs)
        if func in _CASTS and args[0].dtype == torch.float64 and args[0].ndim == 4:
            return args[0]
        return out

    @staticmethod
    def _named(dtype: torch.dtype | None) -> torch.dtype | None:
        # The vectors are float64 and nothing else is: another dtype is one the scheduler names.
        return None if dtype == torch.float64 else dtype
