"""A pipeline's solver steps by our `step` op."""

from typing import Any

import torch

from ...solvers.draws import Noise
from ...solvers.table import SolverTable
from .buffers import Buffers
from .returns import Returns


class Fused:
    """Steps a batch by its table, latents in float32, a decision taken with every step."""

    def __init__(self, table: SolverTable, returns: Returns, buffers: Buffers):
        self.returns, self.buffers = returns, buffers
        self._noise = Noise(table, buffers.shape)
        self._estimate = None
        if returns.estimate_dtype is not None and table.estimate is not None:
            self._estimate = table.estimate.tolist()

    def step(self, call: Any, given: dict[str, Any], fresh: bool) -> Any:
        """What the scheduler's step() would return of the arguments in `given`."""
        buffers, returns, sample = self.buffers, self.returns, given["sample"]
        model_output, row = given["model_output"], buffers.row
        here = buffers.here()
        if not buffers.untouched(sample):
            narrow = sample.dtype if returns.dtype == torch.float32 else returns.dtype
            buffers.merge(sample, narrow)
        if buffers.state.noise is not None:
            noise = buffers.state.noise[row]
            own = given.get("generator")
            self._noise.into(noise, row, own, model_output.device, model_output.dtype)
        there = buffers.advance(model_output, fresh)
        latents = there.clone() if returns.dtype == torch.float32 else there.to(returns.dtype)
        buffers.given(latents)
        if returns.estimate_dtype is None:
            return returns.make((latents,), given.get("return_dict"))
        estimate = None
        if self._estimate is not None:
            x, m, z = self._estimate[row]
            estimate = torch.add(here if x == 1.0 else here * x, buffers.output, alpha=m)
            if z:
                estimate.add_(buffers.state.noise[row].view(buffers.shape), alpha=z)
            if estimate.dtype != returns.estimate_dtype:
                estimate = estimate.to(returns.estimate_dtype)
        return returns.make((latents, estimate), given.get("return_dict"))
