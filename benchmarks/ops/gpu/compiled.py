"""The same arithmetic as one function under torch.compile, which bench.py compares with.

Decisions stay tensors, one per sample, and nothing waits: a step that a sample does not take is
computed and masked. Written to be fast: it reads and writes tensors that stand still, so that a
CUDA graph needs no copies of them, a table's zeros are left out, and `defect` is one sum.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.ops.gpu.cases import LAUNCHES, RUN, START, Case, Lane
from benchmarks.ops.gpu.runners import Result, Runner


def guide(output: Tensor, guidance_scale: Tensor, guided: bool) -> Tensor:
    m = output[0].float()
    return m + guidance_scale[:, None] * (output[1].float() - m) if guided else m


def update(row: Tensor, x: Tensor, m: Tensor) -> Tensor:
    """DDIM of a network that predicts noise has p = 0 and q = 1."""
    return row[2] * x + row[10] * m


def write(x_next: Tensor, model_input: Tensor, x: Tensor, input_scale: Tensor) -> None:
    x_next.copy_(x)
    model_input.copy_(input_scale * x)


def differences(guided: bool, steps: int) -> Callable:
    """A refresh under `third_order` and the skipped steps that may follow it."""

    def function(
        x_next, model_input, x_1_next, x_2_next, x, x_1, x_2, output, rows, scale, norm, threshold
    ):
        m = guide(output, scale, guided)
        going, done = torch.ones_like(norm, dtype=torch.bool), torch.zeros_like(norm)
        score = None
        for k in range(steps):
            new = update(rows[k], x, m)
            third = (new - 3 * x + 3 * x_1 - x_2).square().sum(1).sqrt()
            first = (new - x).square().sum(1).sqrt()
            right = threshold * norm
            mask = going[:, None]
            x_2, x_1, x = (torch.where(mask, a, b) for a, b in ((x_1, x_2), (x, x_1), (new, x)))
            score = third / right if k == 0 else score
            norm, done = torch.where(going, first, norm), done + going
            going = going & (third < right)
        if steps > 1:
            x_1_next.copy_(x_1)
            x_2_next.copy_(x_2)
        write(x_next, model_input, x, rows[steps - 1, 4])
        return done, score

    return function


def defect(guided: bool, steps: int) -> Callable:
    """A refresh under `defect` and the skipped steps that may follow it."""

    def function(
        x_next, model_input, own, x, e_0, e_1, output, rows, entries, costs, scale, threshold
    ):
        m = guide(output, scale, guided)
        own.copy_(m)
        difference = m - (entries[0, 0] * e_0 + entries[0, 1] * e_1)
        size = difference.square().mean(1).sqrt() * entries[0, 6]
        x = update(rows[0], x, m + entries[0, 3] * difference)
        going, done = torch.ones_like(size, dtype=torch.bool), torch.ones_like(size)
        for k in range(1, steps):
            going = going & (size * costs[k - 1] <= threshold)
            new = update(rows[k], x, entries[k, 0] * m + entries[k, 1] * e_0)
            x, done = torch.where(going[:, None], new, x), done + going
        write(x_next, model_input, x, rows[steps - 1, 4])
        return done, size * costs[0] / threshold

    return function


class Compiled(Runner):
    """mode="reduce-overhead": torch makes a CUDA graph of every call."""

    mode: str | None = "reduce-overhead"
    calls = LAUNCHES

    def __init__(self, case: Case, lanes: list[Lane], compile: Callable = torch.compile):
        super().__init__(case, lanes)
        # The cache of compiled code is per code object and small.
        torch.compiler.reset()
        make = defect if case.criterion == "defect" else differences
        function = make(case.size.guided, case.steps)
        self.function = compile(function, fullgraph=True, dynamic=False, mode=self.mode)
        self.skipped_graphs = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
        self.arguments = [self.tensors(lane) for lane in lanes]
        for tensor in (t for arguments in self.arguments for t in arguments):
            torch._dynamo.mark_static_address(tensor, guard=False)

    def tensors(self, lane: Lane) -> tuple[Tensor, ...]:
        state, case = lane.state, self.case
        x = lane.latents(0)
        halves = 1 + case.size.guided
        model_input = torch.empty_like(state.model_input).view(halves, *x.shape)
        written = (torch.empty_like(x), model_input)
        output = lane.model_outputs[0].view(halves, *x.shape)
        rows, scale = state.rows[START : START + case.steps].clone(), state.guidance_scale
        threshold = state.threshold
        if case.criterion != "defect":
            past = [lane.latents(back).clone() for back in (0, 1, 2)]
            own = torch.empty_like(x), torch.empty_like(x)
            norm = state.norms[:, 0].sqrt().float()
            return (*written, *own, *past, output, rows, scale, norm, threshold)
        gaps = [RUN, *range(1, RUN)]
        entries = [state.weights[START + k, gap - 1, RUN - 1] for k, gap in enumerate(gaps)]
        costs = state.run_cost[START, RUN - 1].clone()
        kept = [lane.kept(back).clone() for back in (0, 1)]
        scalars = (rows, torch.stack(entries), costs, scale, threshold)
        return (*written, torch.empty_like(x), x.clone(), *kept, output, *scalars)

    def __call__(self, k: int) -> None:
        self.left = self.function(*self.arguments[k % len(self.lanes)])

    def result(self) -> Result:
        x_next, model_input, own, *_ = self.arguments[0]
        steps, score = self.left
        kept = own if self.case.criterion == "defect" else None
        return Result(x_next, model_input.flatten(0, 1), steps, score, False, kept)

    @property
    def note(self) -> str:
        skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] - self.skipped_graphs
        left_out = f", which left {skipped} CUDA graphs out" if self.mode and skipped else ""
        return f"torch.compile, mode {self.mode or 'default'}{left_out}"


class Captured(Compiled):
    """Default mode, many calls captured in one CUDA graph as ours are: its kernels alone."""

    mode = None
    hows = ("graph",)
