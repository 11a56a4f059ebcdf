"""DeepCache on the shipped U-Net: most calls compute the outermost blocks alone.

Call i computes everything where i mod n = 0 and keeps what the deep part hands to the last block,
the output of grow1; the other calls compute stem, down1, up1 and head from their own input and
time on top of the kept feature. A shallow call counts as its share of a full call's multiply-adds.

Source: DeepCache, arXiv 2312.00858, uniform interval, outermost skip branch.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adaptive_kernels.demo.model import EMBEDDING, NULL_LABEL, SAMPLE_SHAPE, FashionUNet

from ..method import Method, Outcome, Run
from ..problem import Batch, FlowModel, Problem
from . import loop


class Cached(torch.nn.Module):
    """A FashionUNet of which only every `interval`-th call runs the deep part.

    Calls must come with the same rows in the same order. `interval` 1 is the model itself.
    """

    def __init__(self, unet: FashionUNet, interval: int) -> None:
        super().__init__()
        self.unet, self.interval, self.count = unet, interval, 0
        self.deep: Tensor | None = None

    def forward(
        self,
        model_input: Tensor,  # [rows, 1, 32, 32]
        timestep: Tensor,  # [rows]
        class_labels: Tensor | None = None,  # [rows] int64
    ) -> Tensor:
        net, dtype = self.unet, self.unet.stem.weight.dtype
        device = self.unet.stem.weight.device
        if class_labels is None:
            class_labels = torch.full((len(model_input),), NULL_LABEL)
        index = torch.arange(EMBEDDING // 4, dtype=torch.float32, device=device)
        frequencies = torch.exp(index * (-math.log(10000.0) / (EMBEDDING // 4)))
        angles = timestep.to(device).float().expand(len(model_input))[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)
        embedding = F.silu(net.time(waves) + net.label(class_labels.to(device)))
        pixels = F.pixel_unshuffle(model_input.to(device, dtype), 2)
        skip = net.down1(net.stem(pixels), embedding)
        if self.count % self.interval == 0:
            self.deep = self._deep(skip, embedding)
        self.count += 1
        out = net.up1(torch.cat([self.deep, skip], dim=1), embedding)
        out = net.head(F.silu(net.norm(out)))
        return F.pixel_shuffle(out, 2).to(model_input)

    def _deep(self, skip: Tensor, embedding: Tensor) -> Tensor:
        """All between down1 and up1."""
        net = self.unet
        h2 = net.down2(net.shrink1(skip), embedding)
        h3 = net.attention1(net.down3(net.shrink2(h2), embedding))
        h = net.middle2(net.attention2(net.middle1(h3, embedding)), embedding)
        h = net.up3(torch.cat([h, h3], dim=1), embedding)
        h = net.grow2(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = net.up2(torch.cat([h, h2], dim=1), embedding)
        return net.grow1(F.interpolate(h, scale_factor=2.0, mode="nearest"))


@lru_cache
def shallow_share() -> float:
    """Multiply-adds of a shallow call over those of a full one, counted on one row."""
    counts = []
    # Counted from shapes alone: nothing is computed and no random number drawn.
    with torch.device("meta"), torch.no_grad():
        model = Cached(FashionUNet(), interval=2)
        for _ in range(2):
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, *SAMPLE_SHAPE), torch.zeros(1))
            counts.append(counter.get_total_flops())
    full, shallow = counts
    return shallow / full


def cost(steps: int, interval: int) -> float:
    """Full calls that a run of `steps` costs."""
    full = math.ceil(steps / interval)
    return full + (steps - full) * shallow_share()


def make(interval: float) -> Run:
    """A run with the deep part computed at every `interval`-th step."""

    def run(problem: Problem, batch: Batch) -> Outcome:
        model = Cached(_unet(problem), int(interval))
        if isinstance(problem.model, FlowModel):
            model = FlowModel(model)
        outcome = loop.run(dataclasses.replace(problem, model=model), batch, loop.SkipRule())
        steps, samples = outcome.refreshed.shape
        full = torch.arange(steps)[:, None].expand(steps, samples) % int(interval) == 0
        nfe = torch.full((samples,), cost(steps, int(interval)), dtype=torch.float64)
        return Outcome(outcome.latents, nfe, full)

    return run


def _unet(problem: Problem) -> FashionUNet | None:
    """The U-Net of a problem; None where its model is another."""
    model = problem.model.model if isinstance(problem.model, FlowModel) else problem.model
    return model if isinstance(model, FashionUNet) else None


def _settings(problem: Problem, budget: float) -> list[float]:
    if _unet(problem) is None:
        return []
    return loop.around(lambda n: cost(problem.steps, n), range(2, problem.steps + 1), budget)


METHODS = [Method("deepcache", make, settings=_settings)]
