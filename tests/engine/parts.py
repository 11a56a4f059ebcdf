"""Engines and samplers over one network that treats every row by itself."""

import torch

import adaptive_kernels as ak
from tests.support.networks import Network

SHAPE = (2, 4, 4)


class Rowwise:
    """A network that is called row by row: its bits do not depend on the batch."""

    def __init__(self, model=None):
        self.model, self.rows, self.sizes = model or Network(), 0, []

    def __call__(self, x, timestep, **conditioning):
        self.rows += len(x)
        self.sizes.append(len(x))
        return torch.cat(
            [
                self.model(
                    x[i : i + 1],
                    timestep[i : i + 1],
                    **{name: value[i : i + 1] for name, value in conditioning.items()},
                )
                for i in range(len(x))
            ]
        )


def label(value):
    return {"label": torch.tensor([float(value)])}


def noise(seed, shape=SHAPE):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def engine(scheduler, model=None, slots=3, shape=SHAPE, **options):
    return ak.Engine(model or Rowwise(), scheduler, slots=slots, shape=shape, **options)


def alone(scheduler, request, config=None, guidance_scale=None, unconditional=None, **table):
    """A request by a sampler of its own."""
    own = request.guidance_scale
    scale = guidance_scale if own is None else own
    guided = scale not in (None, 1.0)
    sampler = ak.AdaptiveSampler(scheduler, config=config, guidance_scale=scale, **table)
    return sampler(
        Rowwise(),
        noise(request.seed) if request.noise is None else request.noise[None],
        request.conditioning,
        (request.unconditional or unconditional) if guided else None,
        latents=None if request.latents is None else request.latents[None],
        seed=[request.seed],
        threshold=request.threshold,
        progress=False,
    )


def assert_equal(sample, result):
    """A sample of an engine and the only one of a sampler, bit for bit."""
    assert torch.equal(sample.latents, result.latents[0])
    assert sample.nfe == int(result.nfe)
    assert torch.equal(sample.refreshed, result.refreshed[:, 0])
    assert torch.equal(sample.score.nan_to_num(-1), result.score[:, 0].nan_to_num(-1))
    assert sample.nonfinite == bool(result.nonfinite)
