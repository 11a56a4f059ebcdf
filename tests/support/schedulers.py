"""Scheduler configurations the tests share, and the loop that defines what each of them does."""

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adaptive_kernels.solvers.table import SolverTable

STEPS = (2, 5, 10, 28, 50)


@dataclass(frozen=True)
class Case:
    """A diffusers scheduler, and the arguments SolverTable.from_scheduler is given with it."""

    id: str
    scheduler: str  # class name in diffusers
    config: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        """Return a new scheduler object."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(diffusers, self.scheduler)(**self.config)

    @property
    def step_kwargs(self) -> dict[str, Any]:
        return self.kwargs.get("step_kwargs", {})

    @property
    def set_timesteps_kwargs(self) -> dict[str, Any]:
        return {k: v for k, v in self.kwargs.items() if k != "step_kwargs"}


_NO_CLIP = {"clip_sample": False}
_V = {"prediction_type": "v_prediction"}
_SAMPLE = {"prediction_type": "sample"}
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_ETA = {"step_kwargs": {"eta": 1.0}}

CASES = [
    Case("ddim", "DDIMScheduler", _NO_CLIP),
    Case("ddim-v", "DDIMScheduler", {**_NO_CLIP, **_V}),
    Case("ddim-sample", "DDIMScheduler", {**_NO_CLIP, **_SAMPLE}),
    Case("ddim-eta", "DDIMScheduler", _NO_CLIP, _ETA),
    Case("ddim-v-eta", "DDIMScheduler", {**_NO_CLIP, **_V}, {"step_kwargs": {"eta": 0.5}}),
    Case(
        "ddim-v-zero-snr",
        "DDIMScheduler",
        {**_NO_CLIP, **_V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    Case("ddpm", "DDPMScheduler", _NO_CLIP),
    Case("ddpm-v-large", "DDPMScheduler", {**_NO_CLIP, **_V, "variance_type": "fixed_large"}),
    Case("euler", "EulerDiscreteScheduler"),
    Case("euler-v", "EulerDiscreteScheduler", _V),
    Case("euler-karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    Case("euler-churn", "EulerDiscreteScheduler", {}, {"step_kwargs": {"s_churn": 5.0}}),
    Case("euler-ancestral", "EulerAncestralDiscreteScheduler"),
    Case("pndm", "PNDMScheduler", {"skip_prk_steps": True}),
    Case("pndm-v", "PNDMScheduler", {"skip_prk_steps": True, **_V}),
    Case("dpm-1", "DPMSolverMultistepScheduler", {"solver_order": 1}),
    Case("dpm-2m", "DPMSolverMultistepScheduler"),
    Case("dpm-2m-v", "DPMSolverMultistepScheduler", _V),
    Case("dpm-2m-heun", "DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    Case("dpm-2m-karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    Case("dpm-2m-flow", "DPMSolverMultistepScheduler", _FLOW),
    Case("dpm-2m-sigma-min", "DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    Case(
        "dpm-2m-noise",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    Case("dpm-3m", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    Case("dpm-sde-2m", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    Case(
        "dpm-sde-2m-heun",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    Case("unipc-1", "UniPCMultistepScheduler", {"solver_order": 1}),
    Case("unipc-2", "UniPCMultistepScheduler"),
    Case("unipc-2-v", "UniPCMultistepScheduler", _V),
    Case("unipc-3", "UniPCMultistepScheduler", {"solver_order": 3}),
    Case("unipc-1-flow", "UniPCMultistepScheduler", {"solver_order": 1, **_FLOW}),
    Case("unipc-2-flow", "UniPCMultistepScheduler", _FLOW),
    Case("unipc-3-flow", "UniPCMultistepScheduler", {"solver_order": 3, **_FLOW}),
    Case("deis-2", "DEISMultistepScheduler"),
    Case("deis-3", "DEISMultistepScheduler", {"solver_order": 3}),
    Case("lms", "LMSDiscreteScheduler"),
    Case("heun", "HeunDiscreteScheduler"),
    Case("heun-v", "HeunDiscreteScheduler", _V),
    Case("kdpm2", "KDPM2DiscreteScheduler"),
    Case("kdpm2-ancestral", "KDPM2AncestralDiscreteScheduler"),
    Case("lcm", "LCMScheduler"),
    Case("flow-euler", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    Case(
        "flow-euler-dynamic",
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True},
        {"mu": 0.8},
    ),
    Case("flow-euler-stochastic", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    Case("flow-heun", "FlowMatchHeunDiscreteScheduler"),
    Case("cogvideox-ddim", "CogVideoXDDIMScheduler", _V),
    Case("cogvideox-dpm", "CogVideoXDPMScheduler", _V),
    Case("edm-euler", "EDMEulerScheduler"),
    Case("edm-dpm-2m", "EDMDPMSolverMultistepScheduler"),
    Case("dpm-singlestep", "DPMSolverSinglestepScheduler"),
    Case("ddim-inverse", "DDIMInverseScheduler", _NO_CLIP),
    Case("dpm-inverse", "DPMSolverMultistepInverseScheduler"),
    Case("tcd", "TCDScheduler"),
    Case("unclip", "UnCLIPScheduler", _NO_CLIP),
    Case("sa-solver", "SASolverScheduler", {"tau_func": lambda t: 0.0}),
    Case("helios", "HeliosScheduler", {"stages": 1, "stage_range": [0, 1]}),
    Case("cosine-dpm", "CosineDPMSolverMultistepScheduler"),
]
CASE = {case.id: case for case in CASES}
# No noise levels: PNDM mixes v predictions of several.
UNKNOWN_LEVELS = ("pndm-v",)
KNOWN_LEVELS = ("pndm-v", "ddim-inverse", "kdpm2")
KNOWN_LEVELS = [case for case in CASES if case.id not in UNKNOWN_LEVELS]


@functools.cache
def table_of(name: str, steps: int, **where: Any) -> SolverTable:
    """Return the table of a case, the same object every time: nobody changes a table."""
    return SolverTable.from_scheduler(CASE[name].make(), steps, **CASE[name].kwargs, **where)


class FixedNoise(TorchFunctionMode):
    """Give a scheduler's draws in step `at` the noise z[at], in the dtype it asks for."""

    def __init__(self, z: Tensor) -> None:  # [T, ...]
        super().__init__()
        self.z, self.at = z.unbind(), 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.randn:
            return self.z[self.at].to((kwargs or {}).get("dtype") or torch.float32)
        return func(*args, **(kwargs or {}))


def prepare(case: Case, num_inference_steps: int, begin: int | None = None) -> tuple[Any, Tensor]:
    """Return a scheduler ready to step and the timesteps to run, from row `begin` if given."""
    scheduler = case.make()
    scheduler.set_timesteps(num_inference_steps, **case.set_timesteps_kwargs)
    if begin is not None and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler, scheduler.timesteps[begin or 0 :]


def loop(
    scheduler: Any,
    timesteps: Tensor,  # [T]
    network: Callable[[Tensor, Tensor], Tensor],  # (scaled latents, timestep) -> output
    x: Tensor,  # [B, C, H, W], the first latents
    z: Tensor,  # [T, B, C, H, W], the noise of every step
    step_kwargs: dict[str, Any],
    before_step: Callable[[int, Tensor], None] = lambda i, x: None,
) -> Tensor:
    """Sample as the diffusers pipelines do, calling before_step(i, x_i) first in every step.

    Returns [T + 1, B, C, H, W]: x_0 .. x_T.
    """
    old_x0, latents = None, [x]
    taken = inspect.signature(scheduler.step).parameters
    needs_old = "old_pred_original_sample" in taken
    with FixedNoise(z) as noise:
        if hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = lambda sigma, sigma_next: z[noise.at]
        for i, t in enumerate(timesteps):
            if "prev_timestep" in taken:
                ahead = timesteps[i + 1] if i + 1 < len(timesteps) else None
                step_kwargs = {**step_kwargs, "prev_timestep": ahead}
            noise.at = i
            before_step(i, x)
            scaled = x
            if hasattr(scheduler, "scale_model_input"):
                scaled = scheduler.scale_model_input(x, t)
            m = network(scaled, t)
            if needs_old:
                back = timesteps[i - 1] if i else None
                x, old_x0 = scheduler.step(m, old_x0, t, back, x, **step_kwargs, return_dict=False)
            else:
                x = scheduler.step(m, t, x, **step_kwargs, return_dict=False)[0]
            latents.append(x)
    return torch.stack(latents)


def follow(table: SolverTable, x: Tensor, outputs, z: Tensor) -> tuple[Tensor, Tensor]:
    """Run the table in float64 as a kernel would; outputs(i, x_i) gives m_i, z is [T, ...].

    Returns x_0 .. x_T and h_0 .. h_{T-1}.
    """
    latents, kept = [x.double()], []
    for i in range(table.num_steps):
        x = latents[-1]
        kept.append(table.p[i] * x + table.q[i] * outputs(i, x))
        x = table.A[i] * x + table.S[i] * z[i].double()
        for k, h in zip(range(table.history), reversed(kept), strict=False):
            x = x + table.C[i, k] * h
        latents.append(x)
    return torch.stack(latents), torch.stack(kept)


def in_float64(scheduler):
    """Make a scheduler compute its scalars in float64 too; its sigmas keep their float32 values."""
    parent = type(scheduler)

    def set_timesteps(self, *args, **kwargs) -> None:
        parent.set_timesteps(self, *args, **kwargs)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.is_floating_point() and name != "timesteps":
                setattr(self, name, value.double())

    scheduler.__class__ = type(parent.__name__, (parent,), {"set_timesteps": set_timesteps})
    return scheduler
