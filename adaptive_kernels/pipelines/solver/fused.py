"""A pipeline's solver steps by our `step` op, on one `State` from the first to the last."""

from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...rules.config import AdaptiveConfig
from ...rules.fills import FillTables
from ...sampling.state import State
from ...solvers.table import SolverTable
from .decision import Decision
from .draws import Noise
from .returns import Returns


class Buffers:
    """The op's buffers for one sampling of a pipeline, and what the pipeline does between steps.

    Args:
        table, config, tables: the solver, the rule, and `fill_tables` of both.
        sample: [rows, ...] floating, x_0 as the pipeline holds it.
        samples: B; `rows` is a multiple of it, each sample's rows together.
        noise: whether the solver's noise is given to it.
    """

    def __init__(
        self,
        table: SolverTable,
        config: AdaptiveConfig,
        tables: FillTables,
        sample: Tensor,
        samples: int,
        noise: bool = False,
    ):
        flat = sample.detach().reshape(samples, -1)
        steps = (table.num_steps, *flat.shape)
        self.state = State.begin(
            *(table, flat, config),
            noise=torch.zeros(steps, device=sample.device) if noise else None,
            tables=tables,
        )
        self.decision = Decision(self.state, tables, config.resolved().threshold)
        self.row, self.shape = 0, sample.shape
        self._flat = flat.shape
        # As the pipeline sees them: nothing is reshaped from step to step.
        self._slots = [slot.view(sample.shape) for slot in self.state.latents]
        arguments = self.state.arguments()
        self._head, self._tail = arguments[:10], arguments[11:]
        self.output: Tensor | None = None  # of the last refresh, and as the op reads it
        self._output: Tensor | None = None  # [B, N]
        # What was handed back last, and its version then: untouched, it needs no merge.
        self._given, self._version = sample, _version(sample)

    def here(self) -> Tensor:
        """[rows, ...] float32: the latents of the row at hand."""
        return self._slots[self.row % len(self._slots)]

    def untouched(self, sample: Tensor) -> bool:
        """Whether these are the latents that were handed back, as they were."""
        version = self._version
        return sample is self._given and version is not None and sample._version == version

    def merge(self, sample: Tensor, dtype: torch.dtype) -> None:
        """Takes in what was done to the latents since they were handed back.

        dtype: the narrowest they have been in since.
        """
        here = self.here()
        if dtype == torch.float32:
            here.copy_(sample)
        else:
            # Zero where nobody touched them, and then float32 keeps what the cast had cut off.
            here += sample.float() - here.to(dtype).float()

    def advance(self, model_output: Tensor, fresh: bool, keep: bool = True) -> Tensor:
        """One row; model_output is read where it is fresh. Returns the new latents.

        keep: whether skipped rows use the last fresh output again, and not the one given.
        """
        if fresh or not keep:
            self.output = model_output
            self._output = model_output.reshape(self._flat).contiguous()
        if fresh:
            # All samples take it, whoever asked for it.
            self.state.progress[1].zero_()
        ops.step(*self._head, self._output, *self._tail, fresh, None)
        row, self.row = self.row, self.row + 1
        self.decision.done(row, fresh)
        return self.here()

    def given(self, sample: Tensor) -> None:
        """Takes note of what the pipeline gets."""
        self._given, self._version = sample, _version(sample)


class Fused:
    """Steps a batch by its table, latents in float32, a decision taken with every step."""

    def __init__(
        self,
        table: SolverTable,
        config: AdaptiveConfig,
        tables: FillTables,
        sample: Tensor,
        samples: int,
        returns: Returns,
    ):
        self.returns, self.rows = returns, table.num_steps
        self._noise = Noise(table, sample.shape)
        self.buffers = Buffers(table, config, tables, sample, samples, self._noise.draws)
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
        if self._noise.draws:
            noise = buffers.state.noise[row]
            self._noise.into(noise, row, given.get("generator"), model_output)
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


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None where nobody counts."""
    return None if tensor.is_inference() else tensor._version
