"""The rule as its authors' code takes it, around an unchanged pipeline, one batch one decision.

From the description of their `sparse_pipeline.py`, in scalars: nothing of the package is used.
"""

import functools
from typing import Any

import torch
from torch import Tensor


class Authors:
    """Takes over a pipeline's U-Net and `scheduler.step` for one call.

    ``with Authors(pipe, threshold, max_skip) as rule: pipe(...)``, then ``rule.called``: whether
    the network ran, per step; ``rule.margins``: how far each decision was from a tie.
    """

    def __init__(self, pipe: Any, threshold: float, max_skip: int):
        self.pipe, self.threshold, self.max_skip = pipe, threshold, max_skip
        self.called: list[bool] = []
        self.decisions: list[bool] = []  # whether the next step calls
        self.margins: list[float] = []
        self.changes: list[float] = []

    def __enter__(self) -> "Authors":
        unet, scheduler = self.pipe.unet, self.pipe.scheduler
        own_forward, own_step = unet.forward, scheduler.step
        kept: list[Any] = []

        @functools.wraps(own_forward)
        def forward(*args, **kwargs):
            k = len(self.called)
            compute = k <= 3 or self.decisions[-1]
            self.called.append(compute)
            if compute:
                kept[:] = [own_forward(*args, **kwargs)]
            return kept[0]

        @functools.wraps(own_step)
        def step(model_output, timestep, sample, **kwargs):
            result = own_step(model_output, timestep, sample, **kwargs)
            latents = result[0] if isinstance(result, tuple) else result.prev_sample
            self._decide(len(self.called) - 1, sample, latents)
            return result

        unet.forward, scheduler.step = forward, step
        return self

    def __exit__(self, *_) -> None:
        del self.pipe.unet.forward, self.pipe.scheduler.step

    def _decide(self, k: int, before: Tensor, after: Tensor) -> None:
        if k >= 1:
            self.changes.append(float((after.double() - before.double()).abs().mean()))
        if k < 3:
            return
        d, d1, d2 = self.changes[-1], self.changes[-2], self.changes[-3]
        left, right = abs((d + d2) / 2 - d1), self.threshold * d1
        last = self.decisions[-self.max_skip :]
        guarded = len(self.decisions) >= 5 and not any(last) and len(last) == self.max_skip
        self.decisions.append(guarded or not left <= right)
        if not guarded:
            self.margins.append(abs(left - right) / max(right, 1e-30))


def tied(rule: Authors, margin: float = 1e-3) -> bool:
    """Whether some decision stood so near to a tie that rounding may turn it."""
    return bool(torch.tensor(rule.margins).min() < margin)
