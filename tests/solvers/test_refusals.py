"""What is no table is refused, by the setting that makes it none; what only looks so is served."""

import diffusers
import pytest
import torch

from adaptive_kernels import AdaptiveConfig, AdaptiveSampler
from adaptive_kernels.solvers import scheduler as reading
from adaptive_kernels.solvers.reading import precision
from adaptive_kernels.solvers.refusals import UnsupportedSchedulerError
from adaptive_kernels.solvers.table import SolverTable
from tests.support.schedulers import CASE, follow

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def mixing(change, module=None):
    """DDIM that does something to its result that no element sees alone."""

    class Mixing(diffusers.DDIMScheduler):
        def step(self, model_output, timestep, sample, return_dict=True):
            out = super().step(model_output, timestep, sample, return_dict=False)[0]
            return (change(out),)

    if module:
        Mixing.__module__ = module
    return Mixing(clip_sample=False)


CHANGES = {
    "flips the batch": lambda x: x.flip(0),
    "flips channels": lambda x: x.flip(1),
    "flips height": lambda x: x.flip(2),
    "flips width": lambda x: x.flip(3),
    "batch mean": lambda x: x + 1e-3 * x.mean(0, keepdim=True),
    "channel mean": lambda x: x - 1e-3 * x.mean(1, keepdim=True),
    "height mean": lambda x: x - 1e-3 * x.mean(2, keepdim=True),
    "width mean": lambda x: x - 1e-3 * x.mean(3, keepdim=True),
    "whole mean": lambda x: x - 1e-3 * x.mean(),
    "shifts by one": lambda x: x.flatten().roll(1).reshape(x.shape),
    "swaps height and width": lambda x: x.transpose(2, 3).reshape(x.shape),
    "one channel only": lambda x: torch.cat((2 * x[:, :1], x[:, 1:]), 1),
    "one sample only": lambda x: torch.cat((2 * x[:1], x[1:])),
    "one column only": lambda x: torch.cat((2 * x[..., :1], x[..., 1:]), -1),
}


@pytest.mark.parametrize("module", [None, "diffusers.mixing"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_scheduler_that_mixes_elements_is_refused(change, module):
    """Along any axis; also where its class would be read the quick way."""
    with pytest.raises(UnsupportedSchedulerError, match=r"not a linear function .* every element"):
        SolverTable.from_scheduler(mixing(CHANGES[change], module), 5)


@pytest.mark.parametrize("axis", range(4))
def test_a_scheduler_that_looks_at_the_shape_is_refused(axis):
    with pytest.raises(UnsupportedSchedulerError, match="to latents of another shape"):
        SolverTable.from_scheduler(mixing(lambda x: x / x.shape[axis]), 5)


def test_what_leaves_elements_alone_is_still_a_table():
    table = SolverTable.from_scheduler(mixing(lambda x: 0.5 * x.clone()), 5)
    plain = SolverTable.from_scheduler(CASE["ddim"].make(), 5)
    assert (table.A - 0.5 * plain.A).abs().max() < 1e-12


_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_V = {"prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [
        ("DEISMultistepScheduler", _FLOW, 4),
        ("DEISMultistepScheduler", _FLOW, 20),
        ("DPMSolverMultistepInverseScheduler", {}, 4),
        ("DPMSolverMultistepInverseScheduler", {"use_beta_sigmas": True}, 4),
        ("LMSDiscreteScheduler", {**_V, "use_exponential_sigmas": True}, 3),
        ("UniPCMultistepScheduler", {**_V, "solver_order": 1, "solver_type": "bh1"}, 6),
    ],
)
def test_terms_that_cancel_are_served_where_float32_holds_them(name, config, steps):
    """Its float32 run is as near to the float64 one as the scheduler's own float32 run is."""
    if name.startswith("UniPC"):
        config = {**config, "final_sigmas_type": "sigma_min"}
    scheduler = getattr(diffusers, name)(**config)
    table = SolverTable.from_scheduler(scheduler, steps)
    scheduler.set_timesteps(steps)
    x, *m = torch.randn(1 + steps, 1, 2, 64, dtype=torch.float64, generator=torch.Generator())
    x = x * float(scheduler.init_noise_sigma)
    exact, _ = follow(table, x, lambda i, x: m[i], torch.zeros(steps))
    own = x.float()
    for output, t in zip(m, scheduler.timesteps, strict=True):
        own = scheduler.step(output.float(), t, own, return_dict=False)[0]
    stubborn = iter(m)
    ours = AdaptiveSampler(table, config=AdaptiveConfig(criterion="never"))(
        lambda x, t: next(stubborn).float(),
        x.float() / table.init_noise_sigma,
        latents=None,
        progress=False,
    )
    errors = [(end - exact[-1]).norm() / exact[-1].norm() for end in (ours.latents, own)]
    assert errors[0] < max(precision.NEGLIGIBLE, 10 * errors[1])


def test_terms_that_float32_cannot_hold_are_refused_with_the_way_out():
    config = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    with pytest.raises(
        UnsupportedSchedulerError,
        match=r"terms are \d+ times .* in float32 is .*off.* construct it with solver_order=1",
    ):
        SolverTable.from_scheduler(diffusers.DPMSolverSinglestepScheduler(**config), 20)
    SolverTable.from_scheduler(
        diffusers.DPMSolverSinglestepScheduler(**{**config, "solver_order": 1}), 20
    )


def test_the_way_out_of_cancelling_terms_names_the_spacing(monkeypatch):
    monkeypatch.setattr(reading, "_DOUBTFUL", 0)
    monkeypatch.setattr(precision, "NEGLIGIBLE", 0.0)
    monkeypatch.setattr(precision, "_WORSE", 0)
    for config, way in (
        ({"use_karras_sigmas": True}, "without use_karras_sigmas=True or with solver_order=1"),
        ({"solver_order": 1}, "take another number of steps"),
    ):
        with pytest.raises(UnsupportedSchedulerError, match=way):
            SolverTable.from_scheduler(diffusers.DPMSolverMultistepScheduler(**config), 5)


@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DPMSolverMultistepInverseScheduler",
    ],
)
def test_a_learned_variance_that_is_only_dropped_is_served(name):
    kind = getattr(diffusers, name)
    table = SolverTable.from_scheduler(kind(variance_type="learned_range"), 8)
    plain = SolverTable.from_scheduler(kind(), 8)
    for field in ("p", "q", "A", "S", "C"):
        assert torch.equal(getattr(table, field), getattr(plain, field))


@pytest.mark.parametrize(
    ("name", "config", "arguments", "message"),
    [
        (
            "PNDMScheduler",
            {},
            {},
            "a step reads 13 outputs, of which at most 8 are kept; .* skip_prk_steps=True",
        ),
        (
            "DPMSolverSDEScheduler",
            {},
            {},
            "draws from its Brownian path where an earlier step has drawn",
        ),
        ("SASolverScheduler", {}, {"begin_index": 4}, "tau_func=lambda t: 0, which adds none"),
        ("SASolverScheduler", {"predictor_order": 4}, {}, "tau_func=lambda t: 0, which adds none"),
        (
            "DPMSolverSinglestepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            {},
            "algorithm_type='dpmsolver..', which adds none",
        ),
        (
            "UnCLIPScheduler",
            {"clip_sample": False, "variance_type": "learned_range"},
            {},
            "variance_type='learned_range' scales the noise.*variance_type='fixed_small_log'",
        ),
        ("HeliosScheduler", {}, {}, r"its set_timesteps\(\) fails: KeyError.* stage_index"),
    ],
)
def test_the_refusal_names_the_way_out(name, config, arguments, message):
    with pytest.raises(UnsupportedSchedulerError, match=f"^{name}: .*{message}"):
        SolverTable.from_scheduler(getattr(diffusers, name)(**config), 10, **arguments)


@pytest.mark.parametrize("clip", [True, False])
def test_unclip_is_fed_the_next_timestep_or_refused(clip):
    """Without it its step() takes t - 1; the refusal of the default does not lead there."""
    scheduler = diffusers.UnCLIPScheduler(clip_sample=clip)
    if clip:
        with pytest.raises(UnsupportedSchedulerError, match="construct it with clip_sample=False"):
            SolverTable.from_scheduler(scheduler, 10)
        return
    table = SolverTable.from_scheduler(scheduler, 10)
    scheduler.set_timesteps(10)
    x = y = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    torch.manual_seed(0)
    for i, t in enumerate(scheduler.timesteps):
        ahead = scheduler.timesteps[i + 1] if i < 9 else None
        state = torch.get_rng_state()
        x = scheduler.step(0.3 * x, t, x, prev_timestep=ahead).prev_sample
        torch.set_rng_state(state)
        z = torch.randn_like(y) if table.draws[i] else torch.zeros_like(y)
        h = table.p[i] * y + 0.3 * table.q[i] * y
        y = table.A[i] * y + table.C[i, 0] * h + table.S[i] * z
    assert (x - y).norm() < 1e-6 * x.norm()
    with pytest.raises(ValueError, match="step_kwargs must not name 'prev_timestep'"):
        SolverTable.from_scheduler(scheduler, 10, step_kwargs={"prev_timestep": 3})
