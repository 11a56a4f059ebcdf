"""The numbers that diffusers publishes for whole loops of its schedulers, from the sampler.

Settings and sums are those of diffusers' own tests of its schedulers: a network x t / (t + 1) over
a ramp of 4 x 3 x 8 x 8 elements, 10 steps unless said, sum or mean of the absolute values at the
end.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from adaptive_kernels import AdaptiveConfig, AdaptiveSampler
from adaptive_kernels.solvers.table import SolverTable

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `scale_model_input` function:UserWarning"),
]

SHAPE = (4, 3, 8, 8)
VP = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
SIGMAS = {**VP, "num_train_timesteps": 1100}
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}
MIN = {"final_sigmas_type": "sigma_min"}
INVERSE = {**VP, "lower_order_final": False}
DPM = {**INVERSE, **MIN}
SINGLE = {**VP, **MIN}
UNIPC = {**VP, **MIN}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "num_train_timesteps": 256}
EDM_DPM = {
    **{"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "num_train_timesteps": 1000},
    **{"lower_order_final": False, "final_sigmas_type": "sigma_min"},
}
LINEAR = {"beta_schedule": "linear"}
# What those loops do with scale_model_input(): nothing; feed the network; or keep what it gives as
# the latents too.
UNUSED, FED, KEPT = "unused", "fed", "kept"


@dataclass(frozen=True)
class Loop:
    """One published loop."""

    scheduler: str
    config: dict[str, Any]
    mean: float
    total: float | None = None
    scaling: str = UNUSED
    steps: int = 10
    begin: int | None = None  # solver step; noise of the ramp backwards is added there
    raw: bool = False  # begins there from the ramp as it is
    step_kwargs: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = SHAPE
    slack: float = 1e-3  # of the mean

    def __str__(self) -> str:
        at = "" if self.begin is None else f"-from-{self.begin}"
        settings = "-".join(
            v if k == "prediction_type" else k
            for k, v in self.config.items()
            if k == "prediction_type" or k.startswith("use_")
        )
        size = "-1d" if len(self.shape) == 3 else ""
        return f"{self.scheduler}{at}-{settings}-{self.steps}{size}"


ONE_D = {"shape": (4, 3, 8)}
LOOPS = [
    Loop("DEISMultistepScheduler", VP, 0.23916),
    Loop("DEISMultistepScheduler", {**VP, **V}, 0.091),
    Loop("DEISMultistepScheduler", VP, 0.41054, 315.3016, begin=8),
    Loop("DPMSolverMultistepScheduler", DPM, 0.3301),
    Loop("DPMSolverMultistepScheduler", {**DPM, **V}, 0.2251),
    Loop("DPMSolverMultistepScheduler", {**DPM, **V, **KARRAS}, 0.2096),
    Loop("DPMSolverMultistepScheduler", {**DPM, **V, "use_lu_lambdas": True}, 0.1554),
    Loop("DPMSolverMultistepScheduler", DPM, 0.4146, 318.4111, begin=5),
    Loop("DPMSolverSinglestepScheduler", SINGLE, 0.2791),
    Loop("DPMSolverSinglestepScheduler", {**SINGLE, **V}, 0.1453),
    Loop("DPMSolverSinglestepScheduler", {**SINGLE, **KARRAS}, 0.2248),
    Loop("DPMSolverSinglestepScheduler", {**SINGLE, **V, **KARRAS}, 0.0649),
    Loop("DPMSolverSinglestepScheduler", SINGLE, 0.3505, 269.2187, begin=5),
    Loop("DPMSolverSinglestepScheduler", SINGLE, 0.2574, steps=50, begin=3, raw=True),
    Loop("DPMSolverMultistepInverseScheduler", INVERSE, 0.7047),
    Loop("DPMSolverMultistepInverseScheduler", {**INVERSE, **V}, 1.5194),
    Loop("DPMSolverMultistepInverseScheduler", {**INVERSE, **V, **KARRAS}, 1.7833, slack=2e-3),
    Loop("EDMDPMSolverMultistepScheduler", EDM_DPM, 0.0001),
    Loop("EDMDPMSolverMultistepScheduler", {**EDM_DPM, **V}, 0.0092),
    Loop("EDMDPMSolverMultistepScheduler", EDM_DPM, 0.0106, 8.1661, begin=5),
    Loop("EDMEulerScheduler", EDM, 0.044, 34.1855, FED),
    Loop("EulerDiscreteScheduler", SIGMAS, 0.0131, 10.0807, KEPT),
    # Published as those of LMS and of Heun; these are what its own steps give.
    Loop("EulerDiscreteScheduler", {**SIGMAS, **V}, 3.14863e-13, None, KEPT),
    Loop("KDPM2DiscreteScheduler", {**SIGMAS, **V}, 7.94604e-08, None, KEPT),
    Loop("EulerDiscreteScheduler", {**SIGMAS, **KARRAS}, 0.162139, 124.522995, KEPT),
    Loop("EulerDiscreteScheduler", SIGMAS, 74.3007, 57062.9297, KEPT, begin=8),
    Loop("EulerAncestralDiscreteScheduler", SIGMAS, 0.1983, 152.3192, KEPT),
    Loop("EulerAncestralDiscreteScheduler", {**SIGMAS, **V}, 0.1412, 108.4439, KEPT),
    Loop("EulerAncestralDiscreteScheduler", SIGMAS, 73.1290, 56163.0508, KEPT, begin=8),
    Loop("HeunDiscreteScheduler", SIGMAS, 0.0002, 0.1233, KEPT),
    Loop("HeunDiscreteScheduler", {**SIGMAS, **V}, 6.1112e-10, 4.6934e-07, KEPT),
    Loop("HeunDiscreteScheduler", {**SIGMAS, **KARRAS}, 1.98695e-07, 0.00015, KEPT),
    Loop("HeunDiscreteScheduler", SIGMAS, 97.7538, 75074.8906, KEPT, begin=8),
    Loop("KDPM2DiscreteScheduler", SIGMAS, 0.0266, 20.4125, KEPT),
    Loop("KDPM2DiscreteScheduler", SIGMAS, 91.6776, 70408.4062, KEPT, begin=8),
    Loop("KDPM2AncestralDiscreteScheduler", SIGMAS, 18.2030, 13979.9433, KEPT),
    Loop("KDPM2AncestralDiscreteScheduler", {**SIGMAS, **V}, 0.4320, 331.8133, KEPT),
    Loop("KDPM2AncestralDiscreteScheduler", SIGMAS, 121.2074, 93087.3437, KEPT, begin=8),
    Loop("LCMScheduler", LATENT, 0.0244, 18.7097, steps=1),
    Loop("LCMScheduler", LATENT, 0.2575, 197.7616),
    Loop("LMSDiscreteScheduler", SIGMAS, 1.31, 1006.388, KEPT),
    Loop("LMSDiscreteScheduler", {**SIGMAS, **V}, 2.2676e-06, 0.0017, KEPT),
    Loop("LMSDiscreteScheduler", {**SIGMAS, **KARRAS}, 4.9648, 3812.9927, KEPT),
    Loop("LMSDiscreteScheduler", SIGMAS, 36.0204, 27663.6895, KEPT, begin=8),
    Loop("SASolverScheduler", SIGMAS, 0.439315, 337.394287, KEPT),
    Loop("SASolverScheduler", {**SIGMAS, **KARRAS}, 1.090176, 837.255493, KEPT),
    Loop("TCDScheduler", LATENT, 0.0389, 29.8715, steps=1, step_kwargs={"eta": 0.0}),
    Loop("TCDScheduler", LATENT, 0.2359, 181.2040, step_kwargs={"eta": 0.0}),
    Loop("UniPCMultistepScheduler", UNIPC, 0.2464),
    Loop("UniPCMultistepScheduler", {**UNIPC, **KARRAS}, 0.2925),
    Loop("UniPCMultistepScheduler", {**UNIPC, **V}, 0.1014),
    Loop("UniPCMultistepScheduler", {**UNIPC, **V, **KARRAS}, 0.1966),
    Loop("UniPCMultistepScheduler", UNIPC, 0.4109, 315.5757, begin=8),
    Loop("UniPCMultistepScheduler", UNIPC, 0.2441, **ONE_D),
    Loop("UniPCMultistepScheduler", {**UNIPC, **KARRAS}, 0.2898, **ONE_D),
    Loop("UniPCMultistepScheduler", {**UNIPC, **V}, 0.1014, **ONE_D),
    Loop("UniPCMultistepScheduler", {**UNIPC, **V, **KARRAS}, 0.1944, **ONE_D),
    Loop("UniPCMultistepScheduler", UNIPC, 0.4072, 39.0870, begin=8, **ONE_D),
]


def ramp(shape: tuple[int, ...], backwards: bool = False) -> Tensor:
    """0 to 1, the batch fastest."""
    count = torch.Size(shape).numel()
    values = torch.arange(count).float() / count
    values = values.flip(0) if backwards else values
    return values.reshape(*shape[1:], shape[0]).movedim(-1, 0)


def network(x: Tensor, t: Tensor) -> Tensor:
    t = t.reshape(-1, *(1,) * (x.dim() - 1)).to(x.dtype)
    return x * t / (t + 1)


def scheduler_of(loop: Loop) -> Any:
    """The scheduler with its scale_model_input() used as the loop uses it: another linear one."""
    kind = getattr(diffusers, loop.scheduler)

    class Scaled(kind):
        def scale_model_input(self, sample, timestep=None):
            return sample if loop.scaling == UNUSED else super().scale_model_input(sample, timestep)

        def step(self, model_output, timestep, sample, **named):
            if loop.scaling == KEPT:
                sample = super().scale_model_input(sample, timestep)
            return super().step(model_output, timestep, sample, **named)

    # Who drives it asks which arguments step() takes.
    Scaled.step.__signature__ = inspect.signature(kind.step)
    return Scaled(**loop.config)


def drawn(table: SolverTable, shape: tuple[int, ...]) -> Tensor:
    """[T, ...]: what the solver draws from a generator of seed 0, as the noise that it adds."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.zeros(table.num_steps, *shape)
    for i, row in enumerate(table.draws):
        for weight, _ in row:
            z = torch.randn(shape, generator=generator)
            if weight:
                noise[i] += weight / float(table.S[i]) * z
    return noise


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_a_published_number_is_reproduced(loop):
    scheduler = scheduler_of(loop)
    stages = getattr(scheduler, "order", 1)
    where = {} if loop.begin is None else {"begin_index": loop.begin * (1 if loop.raw else stages)}
    table = SolverTable.from_scheduler(
        scheduler, loop.steps, step_kwargs=loop.step_kwargs or None, **where
    )
    sampler = AdaptiveSampler(table, config=AdaptiveConfig(criterion="never"))
    start, noise = ramp(loop.shape), ramp(loop.shape, backwards=True)
    call = {"step_noise": drawn(table, loop.shape), "progress": False}
    if loop.raw:
        result = sampler(network, 0 * noise, latents=start / table.start[0], **call)
    elif loop.begin is not None:
        sigma = table.init_noise_sigma if loop.scaling == KEPT else 1.0
        result = sampler(network, noise, latents=start * sigma, **call)
    elif table.needs_latents:
        result = sampler(network, noise, latents=start, **call)
    elif loop.scaling == UNUSED:
        # Those loops do not scale what they start from.
        result = sampler(network, start / table.init_noise_sigma, **call)
    else:
        result = sampler(network, start, **call)
    sizes = result.latents.abs()
    # Theirs: mostly 1e-3 and 1e-2; and what float32 may make of sums this large, in either run.
    slack = min(loop.slack, loop.mean / 2)
    assert sizes.mean().item() == pytest.approx(loop.mean, abs=slack, rel=2**-20)
    if loop.total is not None:
        assert sizes.sum().item() == pytest.approx(loop.total, abs=1e-2, rel=2**-20)
    assert result.nfe.tolist() == [table.num_steps] * loop.shape[0]
