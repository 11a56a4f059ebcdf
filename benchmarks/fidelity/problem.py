"""What every method of the laboratory is given: a model, a solver, noise and conditioning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from adaptive_kernels import measure_output_noise
from adaptive_kernels.demo import model as demo_model
from adaptive_kernels.solvers.table import SolverTable

_BETAS = {
    "num_train_timesteps": demo_model.TRAIN_TIMESTEPS,
    "beta_start": demo_model.BETA_START,
    "beta_end": demo_model.BETA_END,
    "beta_schedule": "linear",
}
# "trailing" starts every count of steps at the same level; fewer steps are then a fair comparison.
TRAILING = {**_BETAS, "timestep_spacing": "trailing"}
SOLVERS = ("ddim", "euler", "dpm2m", "unipc", "flow")
# The samples that a network's noise is measured on; no run that is reported may start from them.
NOISE_SEED = 1_000_033
# Of the runs that tell the limit; the second number for extrapolation, with half of the first.
LIMIT_STEPS = (1000, 500)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Batch:
    """The samples of one seed."""

    noise: Tensor  # [B, ...] float32
    conditioning: dict[str, Any]
    unconditional: dict[str, Any] | None  # None: no guidance
    labels: Tensor  # [B] int64: the group of each sample
    seed: int


@dataclass(frozen=True)
class Problem:
    """A model and a solver; `batch(seed)` makes the samples.

    model(model_input, timestep, **conditioning) takes and returns [rows, ...]; with guidance the
    sampler stacks 2B rows, unconditional first, and combines mu + guidance_scale (mc - mu).
    """

    name: str
    model: Callable
    scheduler: Callable[[], Any]  # makes a new diffusers scheduler
    steps: int
    guidance_scale: float | None
    batch: Callable[[int], Batch]
    group_names: tuple[str, ...]
    decode: Callable[[Tensor], Tensor]  # latents [B, ...] -> images [B, C, H, W] in [-1, 1]
    dtype: str = "float32"  # of the network
    exact: Problem | None = None  # the same with a float32 network; None: this is it
    # What more and more steps lead to: the sum of these problems' full runs, each times its weight.
    limit: tuple[tuple[float, Problem], ...] = ()

    _tables: dict[int, SolverTable] = field(default_factory=dict, init=False, repr=False)
    _noise: list[tuple[float, ...]] = field(default_factory=list, init=False, repr=False)

    def table(self, steps: int | None = None) -> SolverTable:
        """The solver over `steps` steps, made once; None: the problem's own number."""
        steps = steps or self.steps
        if steps not in self._tables:
            self._tables[steps] = SolverTable.from_scheduler(self.scheduler(), steps)
        return self._tables[steps]

    def output_noise(self) -> tuple[float, ...]:
        """What the network's rounding adds to its outputs by the step, measured once."""
        if not self._noise:
            batch = self.batch(NOISE_SEED)
            self._noise.append(
                measure_output_noise(
                    self.model,
                    self.table(),
                    noise=batch.noise,
                    conditioning=batch.conditioning,
                    unconditional=batch.unconditional,
                    guidance_scale=self.guidance_scale,
                    progress=False,
                )
            )
        return self._noise[0]

    @property
    def limit_name(self) -> str:
        """Of the runs that tell the limit; empty where there are none."""
        return "+".join(f"{weight:g}x{part.name}" for weight, part in self.limit)

    @property
    def reference(self) -> Problem:
        """Whose full run every figure is measured against."""
        return self.exact or self


def shipped(
    solver: str,
    steps: int,
    samples_per_class: int = 4,
    guidance_scale: float = 2.0,
    dtype: str = "float32",
    limit: bool = True,
    device: str = "cpu",
) -> Problem:
    """The shipped Fashion-MNIST model under one of SOLVERS, in one of DTYPES.

    Its limit is that of the one ODE that the solvers of a noise schedule share: DPM-Solver++ 2M
    with LIMIT_STEPS steps, and on the flow-matching grid Euler's, extrapolated from two of them.
    device: where the network is; see `on_device`.
    """
    model = on_device(demo_model.load_demo_model(DTYPES[dtype]), device)
    exact, parts = None, ()
    given = {"samples_per_class": samples_per_class, "guidance_scale": guidance_scale}
    given["device"] = device
    if dtype != "float32":
        exact = shipped(solver, steps, **given, limit=limit)
    if limit:
        many, half = LIMIT_STEPS
        runs = [(1.0, "dpm2m", many)]
        if solver == "flow":
            runs = [(2.0, "flow", many), (-1.0, "flow", half)]
        parts = tuple(
            (weight, shipped(name, count, **given, limit=False)) for weight, name, count in runs
        )

    def batch(seed: int) -> Batch:
        labels = torch.arange(demo_model.NUM_CLASSES).repeat_interleave(samples_per_class)
        noise = torch.randn(
            len(labels), *demo_model.SAMPLE_SHAPE, generator=torch.Generator().manual_seed(seed)
        )
        null = torch.full_like(labels, demo_model.NULL_LABEL)
        return Batch(noise, {"class_labels": labels}, {"class_labels": null}, labels, seed)

    return Problem(
        f"{solver}-{steps}" if exact is None else f"{solver}-{steps}-{dtype}",
        FlowModel(model) if solver == "flow" else model,
        lambda: make_scheduler(solver),
        steps,
        guidance_scale,
        batch,
        demo_model.CLASS_NAMES,
        lambda latents: latents.clamp(-1, 1),
        dtype,
        exact,
        parts,
    )


def on_device(network: torch.nn.Module, device: str) -> torch.nn.Module:
    """The network itself, moved; what it is given follows it there, its output comes back.

    Solvers, rules and samples thus stay on the CPU, whatever the network runs on.
    """
    network.to(device)
    if torch.device(device).type == "cpu":
        return network

    def moved(tree: Any, place: str) -> Any:
        return pytree.tree_map(lambda x: x.to(place) if isinstance(x, Tensor) else x, tree)

    network.register_forward_pre_hook(
        lambda module, given, named: (moved(given, device), moved(named, device)), with_kwargs=True
    )
    network.register_forward_hook(lambda module, given, output: moved(output, "cpu"))
    return network


def make_scheduler(solver: str) -> Any:
    """A new scheduler with the noise schedule the shipped model was trained on."""
    if solver == "ddim":
        return demo_model.demo_scheduler()
    if solver == "euler":
        return diffusers.EulerDiscreteScheduler(**TRAILING)
    if solver == "dpm2m":
        return diffusers.DPMSolverMultistepScheduler(**TRAILING)
    if solver == "unipc":
        return diffusers.UniPCMultistepScheduler(**TRAILING)
    if solver == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")


class FlowModel(torch.nn.Module):
    """The shipped eps network on a flow-matching grid: x = (1 - s) x0 + s eps, output eps - x0.

    Its level is the one of the training schedule with the same sigma / alpha; at s near 1 that
    ratio is capped at the largest the network was trained for. What is around the network is
    computed in float32, as the network's own rounding is what half precision is about; at s near 1
    it counts 1 / (1 - s) times as much in the output.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        betas = torch.linspace(
            demo_model.BETA_START, demo_model.BETA_END, demo_model.TRAIN_TIMESTEPS
        ).double()
        alphas = (1 - betas).cumprod(0)
        self.register_buffer("ratios", ((1 - alphas) / alphas).sqrt())  # rising

    def forward(self, model_input: Tensor, timestep: Tensor, **conditioning: Any) -> Tensor:
        """model_input: [rows, 1, 32, 32]; timestep: [rows], 1000 s. Returns eps - x0."""
        dtype, model_input = model_input.dtype, model_input.float()
        s = timestep.double() / 1000
        ratio = (s / (1 - s)).clamp(self.ratios[0], self.ratios[-1])
        upper = torch.searchsorted(self.ratios, ratio).clamp(1, len(self.ratios) - 1)
        low, high = self.ratios[upper - 1].log(), self.ratios[upper].log()
        level = upper - 1 + (ratio.log() - low) / (high - low)
        one = torch.ones((), dtype=torch.float64)
        s = ratio / (1 + ratio)

        def rows(value: Tensor) -> Tensor:
            return value.to(model_input.dtype).view(-1, *[1] * (model_input.dim() - 1))

        norm = torch.hypot(1 - s, s)
        eps = self.model(model_input / rows(norm), level, **conditioning)
        x0 = (model_input - rows(s) * eps) / rows(one - s)
        return (eps - x0).to(dtype)


def worst_tenth(db: Tensor) -> float:
    """The mean of the worst tenth of [B] values."""
    return db.sort().values[: math.ceil(len(db) / 10)].mean().item()
