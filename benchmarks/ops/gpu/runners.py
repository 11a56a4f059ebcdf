"""What bench.py calls and times: the op itself, and a copy of as many bytes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.ops.gpu.cases import LAUNCHES, MODEL_OUTPUTS, START, Case, Lane, clone


class Result(NamedTuple):
    """What launch 0 left of lane 0."""

    latents: Tensor  # [B, N] of the step now reached
    model_input: Tensor  # [B or 2B, N]
    steps: Tensor | int  # [B] or one number: solver steps done
    score: Tensor | float  # [B] or one number: left over right side of the first decision
    batch_wide: bool  # whether the samples decided together
    kept: Tensor | None = None  # [B, N]: the output a refresh under `defect` keeps


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
        self.states = [clone(lane.state) for lane in lanes]
        fresh = (True,) if case.op == "step" else ()
        self.arguments = []
        for state, lane in zip(self.states, lanes, strict=True):
            own = state.arguments()
            self.arguments.append([(*own[:10], m, *own[11:], *fresh) for m in lane.model_outputs])

    def reset(self) -> None:
        # The latents too: forty launches on from here, again and again, would leave float32.
        for state, lane in zip(self.states, self.lanes, strict=True):
            state.progress.copy_(lane.state.progress)
            state.norms.copy_(lane.state.norms)
            state.latents.copy_(lane.state.latents)

    def __call__(self, k: int) -> None:
        turn, lane = divmod(k, len(self.lanes))
        self.function(*self.arguments[lane][turn % MODEL_OUTPUTS])

    def result(self) -> Result:
        state = self.states[0]
        waits = state.progress[1] == 0
        if not bool(waits.all()):
            raise AssertionError("a sample does not wait for the network")
        defect = self.case.criterion == "defect"
        # The next refresh takes the slot after this one's.
        kept = state.outputs[int(state.nfe[0] - 1) % 3] if defect else None
        score = state.score[START + 1]
        done = state.index - START
        return Result(state.current(), state.model_input, done, score, state.batch_wide, kept)

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
