"""What bench.py calls and times: the op itself, the baselines, and a copy of as many bytes."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.ops.baselines import compiled
from benchmarks.ops.baselines.eager import eager
from benchmarks.ops.baselines.start import Result
from benchmarks.ops.gpu.cases import LAUNCHES, MODEL_OUTPUTS, START, Case, Lane
from benchmarks.ops.gpu.scheduler import scheduler


class Runner:
    """Makes launch k of a sequence on lane k mod L; `hows` are the ways it is timed."""

    # "graph": many launches in one CUDA graph; "graph of one"; "calls": from Python.
    hows: tuple[str, ...] = ("calls",)
    calls = LAUNCHES
    note = ""

    def __init__(self, case: Case, lanes: list[Lane]):
        self.case, self.lanes = case, lanes

    def reset(self) -> None:
        """Back to before launch 0; never timed."""

    def __call__(self, k: int) -> None:
        raise NotImplementedError

    def result(self) -> Result | None:
        """After launch 0; None: `verify` did the checking."""

    def verify(self, ks: list[int]) -> None:
        """Raises AssertionError unless launches `ks` since the reset did what they were to do."""


class Op(Runner):
    """`step` or `advance`, by the compiled library or another implementation."""

    hows = ("graph", "graph of one", "calls")

    def __init__(self, case: Case, lanes: list[Lane], function: Callable):
        super().__init__(case, lanes)
        self.function = function
        self.states = [lane.state.clone() for lane in lanes]
        fresh = (True,) if case.op == "step" else ()
        self.arguments = []
        for state, lane in zip(self.states, lanes, strict=True):
            self.arguments.append([(*state.arguments(m), *fresh) for m in lane.model_outputs])

    def reset(self) -> None:
        # The latents too: forty launches on from here, again and again, would leave float32.
        for state, lane in zip(self.states, self.lanes, strict=True):
            state.progress.copy_(lane.state.progress)
            state.measures.copy_(lane.state.measures)
            state.latents.copy_(lane.state.latents)

    def __call__(self, k: int) -> None:
        turn, lane = divmod(k, len(self.lanes))
        self.function(*self.arguments[lane][turn % MODEL_OUTPUTS])

    def result(self) -> Result:
        state = self.states[0]
        waits = state.run == 0
        if not bool(waits.all()):
            raise AssertionError("a sample does not wait for the network")
        defect = self.case.criterion == "defect"
        # The next refresh takes the slot after this one's.
        kept = state.outputs[int(state.nfe[0] - 1) % 3] if defect else None
        score, done = state.score[START + 1], state.index - START
        current = state.current(), state.model_input
        return Result(*current, done, waits, score, state.rule.batch_wide, kept)

    def verify(self, ks: list[int]) -> None:
        for lane, state in enumerate(self.states):
            launches = sum(k % len(self.lanes) == lane for k in ks)
            for what, expected, done in (
                ("steps", START + launches * self.case.steps, state.index),
                ("refreshes", self.lanes[lane].state.nfe[0] + launches, state.nfe),
            ):
                if not bool((done == expected).all()):
                    raise AssertionError(f"{done.tolist()} {what} after the timing, not {expected}")


class Copy(Runner):
    """The device's own copy, which reads and writes as many bytes together as the op."""

    hows = ("graph",)

    def __init__(self, case: Case, lanes: list[Lane]):
        super().__init__(case, lanes)
        device = lanes[0].state.latents.device
        half = (case.bytes_moved + 1) // 2
        self.sources = [
            torch.randint(256, (half,), dtype=torch.uint8, device=device) for _ in lanes
        ]
        self.targets = [torch.zeros_like(source) for source in self.sources]

    def __call__(self, k: int) -> None:
        lane = k % len(self.lanes)
        self.targets[lane].copy_(self.sources[lane])

    def result(self) -> None:
        return None

    def verify(self, ks: list[int]) -> None:
        lane = ks[0] % len(self.lanes)
        if not torch.equal(self.targets[lane], self.sources[lane]):
            raise AssertionError("a copy is not equal to its source")


class Eager(Runner):
    """The released code's way; results say which scheduler they are of."""

    calls = 10

    def __init__(self, case: Case, lanes: list[Lane], solver: tuple[Any, str] | None = None):
        super().__init__(case, lanes)
        device = lanes[0].state.latents.device.type
        ddim, self.note = solver or scheduler(device)
        self.baselines = [eager(lane.start(case), ddim) for lane in lanes]

    def __call__(self, k: int) -> None:
        self.baselines[k % len(self.lanes)]()

    def result(self) -> Result:
        return self.baselines[0].result()


class Compiled(Runner):
    """mode="reduce-overhead": torch makes a CUDA graph of every call."""

    mode: str | None = "reduce-overhead"

    def __init__(self, case: Case, lanes: list[Lane], compile: Callable = torch.compile):
        super().__init__(case, lanes)
        starts = [lane.start(case) for lane in lanes]
        self.call = compiled.Compiled(starts, False, self.mode, compile)
        self.skipped_graphs = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]

    def __call__(self, k: int) -> None:
        self.call(k)

    def result(self) -> Result:
        return self.call.result()

    @property
    def note(self) -> str:
        skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] - self.skipped_graphs
        left_out = f", which left {skipped} CUDA graphs out" if self.mode and skipped else ""
        return f"torch.compile, mode {self.mode or 'default'}{left_out}"


class Captured(Compiled):
    """Default mode, many calls captured in one CUDA graph as ours are: its kernels alone."""

    mode = None
    hows = ("graph",)
