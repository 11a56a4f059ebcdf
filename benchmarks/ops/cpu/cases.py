"""The steps that bench_step.py times: step `MIDDLE` of a 50-step DDIM sampling, and its state."""

import functools
import itertools
from dataclasses import dataclass

import diffusers
import torch
from torch import Tensor

from adaptive_kernels.ops import reference
from adaptive_kernels.rules.config import AdaptiveConfig
from adaptive_kernels.sampling.state import State
from adaptive_kernels.solvers.table import SolverTable
from benchmarks.ops.baselines.start import Start

STEPS, MIDDLE = 50, 25
GUIDANCE = 5.0
SHAPES = ("1x4x64x64", "1x4x128x128", "16x4x128x128", "1x16x21x60x104")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CRITERIA = ("third_order", "released", "defect")
GUIDED_SHAPE = "1x4x128x128"


@dataclass(frozen=True)
class Case:
    """A step on a fresh network output; under `defect` two steps were skipped before it.

    With `skipped` it is the first skipped step after a refresh, its output filled in.
    """

    shape: str
    dtype: str  # of the network's input and output
    criterion: str
    guided: bool = False
    skipped: bool = False

    def __str__(self) -> str:
        flags = "-guided" * self.guided + "-skipped" * self.skipped
        return f"{self.shape}-{self.dtype}-{self.criterion}{flags}"

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(int, self.shape.split("x")))

    @property
    def filled(self) -> bool:
        """Whether the step uses the kept outputs of the refreshes before it."""
        return self.criterion == "defect"

    def run(self, step: int) -> int:
        """Steps done on the current output before `step`; 0: it takes a new one."""
        if not self.filled or step < reference.OUTPUTS:
            return 0
        return (step - MIDDLE + self.skipped) % 3

    @property
    def bytes_moved(self) -> int:
        """Bytes a step must read and write; per-sample scalars are not counted."""
        latents = 4 * (3 if self.criterion == "third_order" else 1) + 4
        terms = problem(self).rows.shape[1] - reference.SCALARS
        history = 4 * terms if terms > 1 else 0
        # Two kept outputs are read; a refresh leaves its own.
        outputs = (8 if self.skipped else 12) if self.filled else 0
        network = DTYPES[self.dtype].itemsize * (1 if self.skipped else 2) * (1 + self.guided)
        return torch.Size(self.sizes).numel() * (latents + history + outputs + network)


CASES = [
    Case(shape, dtype, criterion, guided)
    for guided in (False, True)
    for shape, dtype, criterion in itertools.product(SHAPES, DTYPES, CRITERIA)
    if shape == GUIDED_SHAPE or not guided
] + [
    Case(shape, dtype, "defect", skipped=True)
    for shape, dtype in itertools.product(SHAPES, ("float32", "bfloat16"))
]


def scheduler() -> diffusers.DDIMScheduler:
    ddim = diffusers.DDIMScheduler(clip_sample=False)
    ddim.set_timesteps(STEPS)
    return ddim


@functools.lru_cache(maxsize=1)
def problem(case: Case) -> State:
    """The state before step `MIDDLE`, its network output written; never mutated."""
    table = SolverTable.from_scheduler(scheduler(), STEPS)
    noise = torch.randn(case.sizes, generator=torch.Generator().manual_seed(0))
    scale = torch.full((case.sizes[0],), GUIDANCE) if case.guided else None
    # The baselines know of no noise.
    config = AdaptiveConfig(criterion=case.criterion, output_noise=0.0 if case.filled else None)
    state = State.begin(table, noise, config, guidance_scale=scale, dtype=DTYPES[case.dtype])
    wave = torch.linspace(0, 60, state.model_output[0].numel()).sin()
    # Outputs bend slowly, as a network's do: scores are finite and not a tie. Under `defect` they
    # bend so much that the defect, not max_skip, ends a run.
    bend = 1e-3 if case.filled else 1e-4
    for i in range(MIDDLE + 1):
        state.model_output.copy_((0.7 + bend * i * i) * wave)
        state.model_output[: case.sizes[0]] *= 0.95
        state.run[:] = case.run(i)
        if i < MIDDLE:
            state.step(fresh=True)
    return state


def slot(state: State, back: int) -> Tensor:
    """[B, N]: the latents `back` steps before the one that step `MIDDLE` writes."""
    return state.latents[(MIDDLE + 1 - back) % state.latents.shape[0]]


def kept(case: Case, state: State, back: int) -> Tensor:
    """[B, N]: the output kept `back` refreshes before the one that step `MIDDLE` may leave."""
    return state.outputs[(int(problem(case).nfe[0]) - back) % reference.OUTPUTS]


def weights(case: Case) -> Tensor:
    """[8]: f, r, spread and noise of step `MIDDLE`; all samples stand alike."""
    state = problem(case)
    last_call, call_before = int(state.last_call[0]), int(state.call_before[0])
    return state.weights[MIDDLE, MIDDLE - last_call - 1, last_call - call_before - 1]


def costs(case: Case) -> Tensor:
    """[Q]: predicted error per unit of defect of 1 .. Q skipped steps after the last refresh."""
    state = problem(case)
    last_call, call_before = int(state.last_call[0]), int(state.call_before[0])
    if not case.skipped:
        last_call, call_before = MIDDLE, last_call
    return state.rule_table[last_call, last_call - call_before - 1, :, 0]


def start(case: Case) -> Start:
    """The state before step `MIDDLE`, for a baseline."""
    state, filled = problem(case), case.filled
    return Start(
        criterion=case.criterion,
        shape=case.sizes,
        dtype=DTYPES[case.dtype],
        guidance_scale=GUIDANCE if case.guided else None,
        threshold=float(state.threshold[0]),
        max_skip=state.rule.max_skip,
        step=MIDDLE,
        steps=1,
        fresh=not case.skipped,
        model_output=state.model_output,
        latents=[slot(state, back) for back in (1, 2, 3)],
        measures=state.measures,
        rows=state.rows[MIDDLE : MIDDLE + 1],
        kept=[kept(case, state, back) for back in (1, 2)] if filled else [],
        weights=weights(case)[None] if filled else None,
        costs=costs(case) if filled else None,
    )
