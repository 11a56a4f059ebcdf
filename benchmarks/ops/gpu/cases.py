"""What bench.py times: latents of known models, one solver, a state to start from, bytes moved.

A timed sequence is a chain of launches on one state, each from where the last one stopped, as in a
sampling: nothing has to be put back between them. Thresholds are so small that every step is a
refresh (`step`), or so large that every run is as long as max_skip lets it be (`advance`).
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_kernels.ops.reference import OUTPUTS
from adaptive_kernels.rules.config import AdaptiveConfig
from adaptive_kernels.rules.fills import fill_tables
from adaptive_kernels.rules.tables import FillTables
from adaptive_kernels.sampling.state import State
from adaptive_kernels.solvers.levels import NoiseLevels
from adaptive_kernels.solvers.table import SolverTable
from benchmarks.ops.baselines.start import Start

# 40 runs of five steps must fit behind START; a sampling of 50 steps has room for 7.
STEPS, START, LAUNCHES = 250, 15, 40
TRAINED, OFFSET = 1000, 1  # timesteps a network was trained on; the last one a sampling takes
GUIDANCE = 5.0
MAX_SKIP = 4
RUN = MAX_SKIP + 1
RING = 4
# Refreshes before START; the last two of them stand a run apart, so that the refresh repairs.
NFE = 7
THRESHOLDS = {"step": 1e-30, "advance": 1e30}
# The recommended one first.
CRITERIA = ("defect", "third_order")
OPS = ("step", "advance")
# Launches take turns at these, as a network writes something else every time.
MODEL_OUTPUTS = 4
# A launch that moves less than this finds its data in a GPU's L2.
ROTATE_BYTES = 32e6


@dataclass(frozen=True)
class Size:
    """Latents of a model."""

    name: str
    shape: tuple[int, ...]
    guided: bool = True


# By what is asked of them, first to last: time may run out.
FIRST_SIZES = (
    Size("SDXL", (1, 4, 128, 128)),
    Size("Wan 720p", (1, 16, 21, 90, 160)),
    Size("SDXL x 64", (64, 4, 128, 128)),
)
SIZES = (
    *FIRST_SIZES,
    Size("SD-1.5", (1, 4, 64, 64)),
    Size("Flux", (1, 4096, 64), guided=False),
    Size("SDXL x 8", (8, 4, 128, 128)),
    Size("Wan 480p", (1, 16, 21, 60, 104)),
)
TINY = (Size("tiny", (2, 4, 3, 5)), Size("tiny unguided", (1, 4, 8), guided=False))


@dataclass(frozen=True)
class Case:
    """One op under one criterion at one size."""

    size: Size
    op: str
    criterion: str
    dtype: torch.dtype = torch.bfloat16  # of the network's input and output

    def __str__(self) -> str:
        return f"{self.size.name}, {self.op}, {self.criterion}"

    @property
    def steps(self) -> int:
        """Solver steps of one launch."""
        return 1 if self.op == "step" else RUN

    @property
    def batch(self) -> int:
        return self.size.shape[0]

    @property
    def elements(self) -> int:
        return torch.Size(self.size.shape[1:]).numel()

    @property
    def bytes_moved(self) -> int:
        """Bytes a launch must read and write once; per-sample scalars are not counted."""
        differences = self.criterion == "third_order"
        # A run leaves the latents that the step after it reads.
        read = 3 if differences else 1
        latents = read + min(self.steps, read)
        # Two kept outputs are read, the refresh's own is written.
        kept = 0 if differences else 3
        network = 2 * self.dtype.itemsize * (1 + self.size.guided)
        return self.batch * self.elements * (4 * (latents + kept) + network)

    @property
    def config(self) -> AdaptiveConfig:
        # The baselines know of no noise.
        noise = 0.0 if self.criterion == "defect" else None
        return AdaptiveConfig(THRESHOLDS[self.op], MAX_SKIP, self.criterion, output_noise=noise)

    def facts(self) -> dict:
        """What a result says of its case."""
        return {
            "size": self.size.name,
            "op": self.op,
            "criterion": self.criterion,
            "shape": list(self.size.shape),
            "guided": self.size.guided,
            "dtype": str(self.dtype).removeprefix("torch."),
            "bytes": self.bytes_moved,
        }

    def lanes(self, cache_bytes: int) -> int:
        """States that launches take turns at, so that large data comes from device memory."""
        if self.bytes_moved < ROTATE_BYTES:
            return 1
        return max(2, -(-4 * cache_bytes // self.bytes_moved))


def cases(sizes: tuple[Size, ...] = SIZES, dtype: torch.dtype = torch.bfloat16) -> list[Case]:
    """Every criterion and op at every size, the first sizes under every criterion first."""
    first = [size for size in sizes if size in FIRST_SIZES]
    groups = (first, [size for size in sizes if size not in first])
    return [
        Case(size, op, criterion, dtype)
        for group in groups
        for criterion in CRITERIA
        for size in group
        for op in OPS
    ]


@functools.cache
def alphas_cumprod() -> Tensor:
    """[TRAINED] float32: the scaled-linear betas of Stable Diffusion."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINED, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, dim=0)


def timesteps(steps: int = STEPS) -> Tensor:
    """[steps] int64, "leading" spacing."""
    return torch.arange(steps).flip(0) * (TRAINED // steps) + OFFSET


@functools.cache
def table(steps: int = STEPS) -> SolverTable:
    """DDIM of a network that predicts noise: x' = alpha' (x - sigma m) / alpha + sigma' m."""
    kept = alphas_cumprod().double()
    kept = torch.cat((kept[timesteps(steps)], kept[:1]))
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    zero, one = torch.zeros(steps, dtype=torch.float64), torch.ones(steps, dtype=torch.float64)
    A = alpha[1:] / alpha[:-1]
    return SolverTable(
        p=zero,
        q=one,
        A=A,
        S=zero,
        C=(sigma[1:] - A * sigma[:-1])[:, None],
        input_scale=one,
        timesteps=timesteps(steps),
        init_noise_sigma=1.0,
        start=(float(alpha[0]), float(sigma[0])),
        stages=1,
        name="DDIMScheduler",
        levels=NoiseLevels(alpha, sigma, zero, one, "epsilon"),
    )


@functools.cache
def tables(config: AdaptiveConfig) -> FillTables:
    return fill_tables(table(), config)


@dataclass
class Lane:
    """A state before step START, never mutated, and the outputs a network may have left for it."""

    state: State
    model_outputs: list[Tensor]  # [B or 2B, N] network dtype

    def latents(self, back: int) -> Tensor:
        """[B, N]: x of step START - back."""
        return self.state.latents[(START - back) % RING]

    def kept(self, back: int) -> Tensor:
        """[B, N]: E_back, the output of the last refresh but `back`."""
        return self.state.outputs[(NFE - 1 - back) % OUTPUTS]

    def start(self, case: Case) -> Start:
        """The same for a baseline."""
        state, filled = self.state, case.criterion == "defect"
        weights = costs = None
        if filled:
            gaps = [RUN, *range(1, RUN)]
            entries = [state.weights[START + k, gap - 1, RUN - 1] for k, gap in enumerate(gaps)]
            weights, costs = torch.stack(entries), state.rule_table[START, RUN - 1, :, 0]
        return Start(
            criterion=case.criterion,
            shape=case.size.shape,
            dtype=case.dtype,
            guidance_scale=GUIDANCE if case.size.guided else None,
            threshold=THRESHOLDS[case.op],
            max_skip=MAX_SKIP,
            step=START,
            steps=case.steps,
            fresh=True,
            model_output=self.model_outputs[0],
            latents=[self.latents(back) for back in (0, 1, 2)],
            measures=state.measures,
            rows=state.rows[START : START + case.steps],
            kept=[self.kept(back) for back in (0, 1)] if filled else [],
            weights=weights,
            costs=costs,
        )


def lane(case: Case, device: str, seed: int = 0) -> Lane:
    """Random latents and outputs that bend slowly; whatever a launch must write is NaN."""
    generator = torch.Generator(device).manual_seed(seed)
    batch, elements = case.batch, case.elements

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, elements, generator=generator, device=device)

    scale = torch.full((batch,), GUIDANCE, device=device) if case.size.guided else None
    noise = torch.zeros(batch, elements, device=device)
    state = State.begin(
        *(table(), noise, case.config),
        guidance_scale=scale,
        dtype=case.dtype,
        tables=tables(case.config),
    )
    state.latents.fill_(torch.nan)
    state.model_input.fill_(torch.nan)
    x, slope = normal(batch), 0.02 * normal(batch)
    for back in (0, 1, 2):
        state.latents[(START - back) % RING] = x
        x = x + slope + 0.002 * normal(batch)
    place = torch.tensor([START, 0, NFE, START - RUN, START - 2 * RUN], dtype=torch.int32)
    state.progress.copy_(place[:, None].expand(-1, batch))
    start = Lane(state, [])
    for back in (0, 1):
        change = start.latents(back).double() - start.latents(back + 1).double()
        state.measures[:, back] = change.square().sum(1)
    output = normal(len(state.model_output))
    if state.outputs is not None:
        state.outputs.fill_(torch.nan)
        state.measures[:, :2].fill_(0.01)
        for back in (0, 1):
            start.kept(back).copy_(output[:batch] + 0.05 * normal(batch))
    for _ in range(MODEL_OUTPUTS):
        start.model_outputs.append((output + 0.05 * normal(len(output))).to(case.dtype))
    return start
