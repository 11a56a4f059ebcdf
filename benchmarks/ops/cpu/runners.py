"""The ways to make one step that bench_step.py compares: `call()` makes it, `result()` tells it."""

import torch

from adaptive_kernels import ops
from benchmarks.ops.baselines.compiled import Compiled
from benchmarks.ops.baselines.eager import eager
from benchmarks.ops.baselines.start import Result
from benchmarks.ops.cpu.cases import MIDDLE, Case, kept, problem, scheduler, slot, start


class Step:
    """The op."""

    def __init__(self, case: Case):
        self.case, self.state = case, problem(case).clone()
        # A step writes ring slots that it does not read: with the counters back, it repeats.
        self.counters, self.before = self.state.progress.numpy(), problem(case).progress.numpy()
        self.arguments = (*self.state.arguments(), True)

    def __call__(self) -> None:
        self.counters[:] = self.before
        ops.step(*self.arguments)

    def result(self) -> Result:
        state, case = self.state, self.case
        refresh, score = state.refreshed[MIDDLE + 1], state.score[MIDDLE + 1]
        own = kept(case, state, 0) if case.filled and not case.skipped else None
        return Result(slot(state, 0), state.model_input, 1, refresh, score, False, own)


class Memcpy:
    """A copy that reads and writes as many bytes together as the step."""

    def __init__(self, case: Case):
        self.source = torch.rand(case.bytes_moved // 8)
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> None:
        self.target.copy_(self.source)

    def result(self) -> None:
        assert torch.equal(self.target, self.source)


IMPLEMENTATIONS = {
    "step": Step,
    "eager": lambda case: eager(start(case), scheduler()),
    "compiled": lambda case: Compiled([start(case)], batch_wide=True),
    "memcpy": Memcpy,
}
