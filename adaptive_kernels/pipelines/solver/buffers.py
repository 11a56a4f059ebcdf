"""The op's buffers for one sampling of a pipeline, and what the pipeline does between steps."""

import torch
from torch import Tensor

from ... import ops
from ...rules.config import AdaptiveConfig
from ...rules.tables import FillTables
from ...sampling.state import State
from ...solvers.table import SolverTable
from .decision import Decision


class Buffers:
    """One `State` from a sampling's first step to its last; edits are taken in without a read.

    Args:
        table, config, tables: the solver, the rule, and `fill_tables` of both.
        sample: [rows, ...] floating, x_0 as the pipeline holds it.
        samples: B; `rows` is a multiple of it, each sample's rows together.
        output_noise: the most that counts as noise of the networks' outputs, rms.
    """

    def __init__(
        self,
        table: SolverTable,
        config: AdaptiveConfig,
        tables: FillTables,
        sample: Tensor,
        samples: int,
        output_noise: float,
    ):
        flat = sample.detach().reshape(samples, -1)
        self.rows = table.num_steps
        noise = None
        if any(map(len, table.draws)):
            noise = torch.zeros(self.rows, *flat.shape, device=sample.device)
        self.state = State.begin(table, flat, config, noise=noise, tables=tables)
        if "defect" in config.kind.sums:
            self.state.output_noise.fill_(output_noise)
        self.decision = Decision(self.state, tables, config.resolved(table).threshold)
        self.row, self.shape = 0, sample.shape
        self._flat = flat.shape
        # As the pipeline sees them: nothing is reshaped from step to step.
        self._slots = [slot.view(sample.shape) for slot in self.state.latents]
        self._arguments = self.state.arguments()
        self.output: Tensor | None = None  # [rows, ...] of the last refresh
        self._output: Tensor | None = None  # [B, N], as the op reads it
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
            flat = model_output.reshape(self._flat).contiguous()
            # The op takes what networks run in.
            self._output = flat.float() if flat.dtype == torch.float64 else flat
        if fresh:
            # All samples take it, whoever asked for it.
            self.state.run.zero_()
        ops.step(*self._arguments._replace(model_output=self._output), fresh, None)
        row, self.row = self.row, self.row + 1
        self.decision.done(row, fresh)
        return self.here()

    def given(self, sample: Tensor) -> None:
        """Takes note of what the pipeline gets."""
        self._given, self._version = sample, _version(sample)


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None where nobody counts."""
    return None if tensor.is_inference() else tensor._version
