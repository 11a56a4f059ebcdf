"""What is no table is refused, by the setting that makes it none; what only looks so is served."""

import threading
import types

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


SHAPES = {
    **{f"divides by size {axis}": lambda x, axis=axis: x / x.shape[axis] for axis in range(4)},
    "fourth channel": lambda x: torch.cat((x[:, :3], 2 * x[:, 3:]), 1),
    "fourth sample": lambda x: torch.cat((x[:3], 2 * x[3:])),
    "wide latents": lambda x: 2 * x if x.shape[-1] >= 16 else x,
}


@pytest.mark.parametrize("change", SHAPES)
def test_a_scheduler_that_looks_at_the_shape_is_refused(change):
    with pytest.raises(UnsupportedSchedulerError, match="to latents of another shape"):
        SolverTable.from_scheduler(mixing(SHAPES[change]), 5)


def test_a_scheduler_that_looks_at_the_dtype_is_refused():
    with pytest.raises(UnsupportedSchedulerError, match="to latents of another dtype"):
        SolverTable.from_scheduler(mixing(lambda x: 2 * x if x.dtype == torch.float32 else x), 5)


NOISES = {
    "one a sample": (
        lambda x: torch.randn(x.shape[0], 1, 1, 1, dtype=x.dtype),
        "draws noise of sh",
    ),
    "one for all": (lambda x: torch.randn(1), "draws noise of shape"),
    "like a part": (lambda x: torch.randn_like(x[:1]), "draws noise of shape"),
    "a number": (lambda x: torch.randn(()).item() * x, "draws noise of shape"),
    "uniform": (torch.rand_like, "draws random numbers with rand_like.*torch.randn"),
    "in place": (lambda x: torch.empty_like(x).normal_(), "draws random numbers with normal_"),
}


@pytest.mark.parametrize("noise", NOISES)
def test_noise_that_a_table_cannot_draw_is_refused_by_what_it_is(noise):
    change, message = NOISES[noise]
    with pytest.raises(UnsupportedSchedulerError, match=message):
        SolverTable.from_scheduler(mixing(lambda x: x + 0.1 * change(x)), 5)


def test_a_noise_sampler_of_another_meaning_is_left_alone():
    """Only diffusers' own are known to give unit variance over a path."""

    class Quiet(diffusers.DDIMScheduler):
        noise_sampler = None

        def step(self, model_output, timestep, sample, return_dict=True):
            out = super().step(model_output, timestep, sample, return_dict=False)[0]
            return (out if self.noise_sampler is None else out + self.noise_sampler(out),)

    table = SolverTable.from_scheduler(Quiet(clip_sample=False), 5)
    assert not table.S.any() and not any(table.draws)


class Line:
    """A flow Euler scheduler of ten lines, that tests change."""

    def set_timesteps(self, n, device=None):
        self.timesteps = torch.linspace(1000, 1000 / n, n)
        self.sigmas = torch.cat((self.timesteps / 1000, torch.zeros(1)))
        self.at = 0

    def move(self, x, m, d):
        return x + d * m

    def step(self, model_output, timestep, sample):
        d = float(self.sigmas[self.at + 1] - self.sigmas[self.at])
        self.at += 1
        return (self.move(sample, model_output, d),)


def line(**attributes):
    scheduler = Line()
    vars(scheduler).update(attributes)
    return scheduler


@pytest.mark.parametrize("name", ["x", "m", "both", "scale"])
def test_a_scheduler_that_writes_into_its_arguments_is_served(name):
    """What it does to what it was given is its own business."""

    class Writing(Line):
        def scale_model_input(self, sample, timestep=None):
            return sample.mul_(0.5) if name == "scale" else 0.5 * sample

        def move(self, x, m, d):
            x = x.mul_(0.9) if name in ("x", "both") else 0.9 * x
            m = m.mul_(2.0) if name in ("m", "both") else 2.0 * m
            return x.add_(m, alpha=d) if name == "both" else x + d * m

    table = SolverTable.from_scheduler(Writing(), 5)
    kept = 0.9 * (0.5 if name == "scale" else 1.0)
    assert torch.allclose(table.A + table.C[:, 0] * table.p, torch.full((5,), kept).double())
    assert torch.allclose(table.C[:, 0] * table.q, torch.full((5,), -0.4).double())
    assert (table.input_scale == 0.5).all()


class Listed(Line):
    def set_timesteps(self, n):
        super().set_timesteps(n)
        self.timesteps = self.timesteps.tolist()


@pytest.mark.parametrize(
    "scheduler",
    [Line(), Listed(), line(config=types.SimpleNamespace(prediction_type="flow_prediction"))],
    ids=["plain", "timesteps as a list", "settings as an object"],
)
def test_a_scheduler_of_ones_own_needs_little(scheduler):
    table = SolverTable.from_scheduler(scheduler, 5)
    assert table.levels.prediction == "flow_prediction" and table.start == (0.0, 1.0)


def test_a_step_that_fails_is_not_left_out():
    """A schedule may end with the level of the result; then it has one timestep more than steps."""

    class Short(Line):
        def set_timesteps(self, n):
            super().set_timesteps(n)
            self.sigmas = self.sigmas[:-1]
            self.timesteps[-1] = 0

    class Ended(Line):
        def set_timesteps(self, n):
            super().set_timesteps(n)
            self.timesteps = torch.cat((self.timesteps, torch.zeros(1)))

    with pytest.raises(UnsupportedSchedulerError, match="its own step 4 fails: IndexError"):
        SolverTable.from_scheduler(Short(), 5)
    assert SolverTable.from_scheduler(Ended(), 5).num_steps == 5
    ending = {"begin_index": 4, "intermediate_timesteps": None}
    assert SolverTable.from_scheduler(diffusers.SCMScheduler(), 10, **ending).num_steps == 6
    prepared = diffusers.DDPMWuerstchenScheduler()
    prepared.set_timesteps(10)
    assert SolverTable.from_prepared(prepared, begin_index=4).num_steps == 6


def test_levels_are_not_made_up():
    """alphas and betas of training, a spread in units of sigma, an add_noise() that is none."""
    slice_of_lms = diffusers.LMSDiscreteScheduler(
        prediction_type="sample", timestep_spacing="linspace"
    )
    assert SolverTable.from_scheduler(slice_of_lms, 50, begin_index=2).levels is None

    class Spread(Line):
        init_noise_sigma = 80.0

        def set_timesteps(self, n):
            super().set_timesteps(n)
            self.sigmas = torch.cat((torch.logspace(1.9, -2, n), torch.zeros(1)))

        def step(self, model_output, timestep, sample):
            now, then = self.sigmas[self.at].item(), self.sigmas[self.at + 1].item()
            self.at += 1
            return (sample + (then - now) / now * (sample - model_output),)

    table = SolverTable.from_scheduler(Spread(), 5)
    assert table.levels.prediction == "sample" and (table.levels.alpha == 1).all()
    later = SolverTable.from_scheduler(Spread(), 5, begin_index=2)
    assert later.start == (1.0, pytest.approx(table.levels.sigma[2].item()))

    for add_noise in (
        lambda clean, noise, t: clean + torch.randn_like(clean),
        lambda clean, noise, t: (clean + noise).clamp(-1, 1),
        lambda clean, noise, t: clean / 0,
        lambda clean: clean,
        None,
    ):
        table = SolverTable.from_scheduler(line(add_noise=add_noise), 5)
        assert table.levels is None and table.start is None


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"order": 0}, "its order must be a whole number from 1 on, got 0"),
        ({"order": None}, "its order must be a number"),
        ({"init_noise_sigma": [1.0, 2.0]}, r"its init_noise_sigma must be a number, got \[1.0, 2"),
        ({"set_timesteps": lambda n: None}, "its set_timesteps.. sets no timesteps"),
        ({"move": lambda x, m, d: x + d * m + torch.tensor(float("nan"))}, "gives NaN or Inf"),
        ({"step": lambda model_output, timestep, sample: sample}, "step 0 returns no latents"),
        ({"step": lambda model_output, timestep, sample: ()}, "step 0 returns no latents"),
        (
            {"scale_model_input": lambda x: x},
            r"its scale_model_input\(\) fails in step 0: TypeError",
        ),
        ({"scale_model_input": lambda x, t: None}, "is not a multiple of the latents"),
        ({"lock": threading.Lock()}, "it cannot be copied: TypeError"),
        ({"move": lambda x, m, d: (x + d * m).numpy()}, "step 0 returns no latents"),
    ],
)
def test_what_a_scheduler_of_ones_own_gets_wrong_is_said_of_it(attributes, message):
    with pytest.raises(UnsupportedSchedulerError, match=f"^Line: .*{message}"):
        SolverTable.from_scheduler(line(**attributes), 5)


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
        latents=x.float() if table.needs_latents else None,
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
