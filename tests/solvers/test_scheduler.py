"""A diffusers scheduler and the table read off it are the same solver."""

import copy
import math
import types

import diffusers
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adaptive_kernels.solvers import scheduler as reading
from adaptive_kernels.solvers.reading import probe, quick
from adaptive_kernels.solvers.scheduler import UnsupportedSchedulerError
from adaptive_kernels.solvers.table import SolverTable
from tests.support.schedulers import CASE, CASES, STEPS, Case, follow, in_float64, loop, prepare

# numpy's complaint about how diffusers converts its tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

U = 2.0**-24  # unit roundoff of float32


def network(u: Tensor, t: Tensor) -> Tensor:
    """Return a nonlinear function of the scaled latents and the timestep, in float64."""
    return torch.tanh(0.1 * u.double() + 0.5 + t.double() / 2000)


def slope(u: Tensor, t: Tensor) -> Tensor:
    """Return d network / d u."""
    return 0.1 * (1 - network(u, t) ** 2)


class Rounding(TorchFunctionMode):
    """Bound the float32 error of every vector a scheduler computes, by running error analysis.

    Each operation adds the rounding of its result, at most U |result|, and once more where a scalar
    may have been rounded to float32 first; errors of its operands pass through to first order. An
    operation without a rule fails the test.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bounds: dict[int, Tensor] = {}
        self.alive: list[Tensor] = []  # so that no id is used twice
        self.paused = False

    def of(self, x) -> Tensor | float:
        return self.bounds.get(id(x), 0.0)

    def set(self, x: Tensor, bound: Tensor) -> None:
        self.bounds[id(x)] = bound
        self.alive.append(x)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        before = [self.of(a) for a in args if isinstance(a, Tensor)]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.ndim >= 4 and not self.paused:
            self.set(out, self.rule(func, args, kwargs or {}, before, out.double().abs()))
        return out

    def rule(self, func, args, kwargs, before, size: Tensor) -> Tensor:
        name = func.__name__.strip("_")
        zero = torch.zeros_like(size)
        if name in ("add", "radd", "iadd", "sub", "rsub"):
            scalars = sum(abs(a) for a in args if not isinstance(a, Tensor))
            return zero + sum(before) + U * (size + scalars)
        if name in ("mul", "rmul"):
            a, b = args
            return zero + self.of(a) * abs(b) + self.of(b) * abs(a) + 2 * U * size
        if name in ("div", "truediv") and not (isinstance(args[1], Tensor) and args[1].numel() > 1):
            return zero + self.of(args[0]) / abs(args[1]) + 2 * U * size
        if name in ("neg", "to", "float", "clone"):
            return zero + before[0]
        if name in ("view", "unsqueeze", "getitem"):
            known = isinstance(before[0], Tensor)
            return func(before[0], *args[1:], **kwargs) if known else zero
        if name == "zeros_like":
            return zero
        if name == "stack":
            parts = [self.of(a) + torch.zeros_like(a, dtype=torch.float64) for a in args[0]]
            return func(parts, **kwargs)
        if name == "einsum":
            equation, weights, vectors = args
            weights = weights.double().abs()
            rounding = (len(weights) + 1) * U * vectors.double().abs()
            return func(equation, weights, self.of(vectors) + rounding)
        raise AssertionError(f"no rounding rule for {func}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_quick_way_to_a_table_gives_the_same_table(case, monkeypatch):
    """What it cannot see, draws and casts on the way, sends it the long way round.

    There as a class that nobody knows: latents of another shape and dtype are tried too.
    """
    fast = SolverTable.from_scheduler(case.make(), 12, **case.kwargs)
    monkeypatch.setattr(quick, "is_of_diffusers", lambda kind: False)
    monkeypatch.setattr(quick, "may_be_quick", lambda kind: False)
    monkeypatch.setattr(probe, "Vector", None)
    whole = SolverTable.from_scheduler(case.make(), 12, **case.kwargs)
    for name in ("p", "q", "A", "S", "C", "input_scale", "estimate"):
        ours, theirs = getattr(fast, name), getattr(whole, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()
    assert fast.draws == whole.draws


@pytest.mark.parametrize("how", ["cast", "generator", "global", "otherwise"])
def test_the_quick_way_notices_what_it_must_not_miss(how):
    """A scheduler that rounds on the way, or draws; nobody's generator is moved."""

    class Sly(diffusers.DDIMScheduler):
        def step(self, model_output, timestep, sample, generator=None, return_dict=True):
            if how == "cast":
                sample = (sample * 1.0).to(torch.float32).to(torch.float64)
            out = super().step(model_output, timestep, sample, return_dict=False)[0]
            if how == "generator":
                out = out + 0.5 * randn_tensor(out.shape, generator=generator, dtype=out.dtype)
            if how == "global":
                out = out + 0.5 * randn_tensor(out.shape, dtype=out.dtype)
            if how == "otherwise":
                out = out + 0.5 * torch.randn_like(out)
            return (out,)

    Sly.__module__ = "diffusers.sly"
    torch.manual_seed(3)
    stood = torch.get_rng_state()
    table = SolverTable.from_scheduler(Sly(clip_sample=False), 6)
    plain = SolverTable.from_scheduler(diffusers.DDIMScheduler(clip_sample=False), 6)
    assert torch.equal(torch.get_rng_state(), stood)
    assert (table.A - plain.A).abs().max() < 1e-12 and (table.C - plain.C).abs().max() < 1e-12
    assert torch.equal(table.S, torch.full_like(table.S, 0.0 if how == "cast" else 0.5))
    own = how == "generator"
    assert [len(row) for row in table.draws] == [0 if how == "cast" else 1] * 6
    assert all(draw.own == own for row in table.draws for _, draw in row)


def test_noise_of_a_generator_of_its_own_is_refused():
    """Nobody could draw it as the scheduler does."""

    class Own(diffusers.DDIMScheduler):
        def step(self, model_output, timestep, sample, return_dict=True):
            out = super().step(model_output, timestep, sample, return_dict=False)[0]
            own = torch.Generator().manual_seed(int(timestep))
            return (out + randn_tensor(out.shape, generator=own, dtype=out.dtype),)

    with pytest.raises(UnsupportedSchedulerError, match="from a generator of its own"):
        SolverTable.from_scheduler(Own(clip_sample=False), 6)


def compare(case: Case, n: int, begin: int | None = None, **where) -> float:
    """Check that table and scheduler agree along a whole trajectory; return the error / bound.

    The scheduler runs in float32. Its step i rounds by at most delta_i, from Rounding, counting the
    latents and outputs it was fed as exact. The table's row is that step plus back_i times
    (x_i - step i - 1), so along the scheduler's own trajectory the table's row is violated by at
    most delta_i + |back_i| delta_{i-1}; and the output the scheduler was fed is off by at most
    U |m| plus the slope of the network times the rounding of its input, which is compared by
    itself. Each of these is carried to x_k by the derivative of the closed loop, known exactly as
    the network acts on each element alone; absolute contributions are added. 10 % more covers the
    second order and the float64 rounding of the table.
    """
    original, seen = probe.probe, []
    with pytest.MonkeyPatch.context() as patch:

        def watched(*args, **named):
            seen.append(original(*args, **named))
            return seen[-1]

        patch.setattr(reading, "probe", watched)
        table = SolverTable.from_scheduler(case.make(), n, **case.kwargs, **where)
    scheduler, timesteps = prepare(case, n, begin)
    assert torch.equal(table.timesteps, timesteps) and table.timesteps.dtype == timesteps.dtype
    steps = len(timesteps)
    generator = torch.Generator().manual_seed(n)
    x, *z = torch.randn(steps + 1, 1, 1, 8, 1, generator=generator)
    x, z = x * table.init_noise_sigma, torch.stack(z)

    rounding, delta, output_error, at = Rounding(), [], [], [0, x]

    def before_step(i: int, x: Tensor) -> None:
        if i:
            delta.append(rounding.of(x))
        rounding.bounds.pop(id(x), None)
        at[:] = i, x

    def rounded(u: Tensor, t: Tensor) -> Tensor:
        rounding.paused = True
        expected = table.input_scale[at[0]] * at[1].double()
        assert ((u - expected).abs() <= 1.1 * rounding.of(u)).all()
        m = network(u, t).float()
        output_error.append(slope(u, t) * rounding.of(u) + U * m.double().abs())
        rounding.paused = False
        return m

    with rounding:
        theirs = loop(scheduler, timesteps, rounded, x, z, case.step_kwargs, before_step)
    delta.append(rounding.of(theirs)[-1])

    scale, times = table.input_scale, table.timesteps
    ours, _ = follow(table, x, lambda i, x: network(scale[i] * x, times[i]), z)

    back = table.A + table.C[:, 0] * table.p - seen[-1].x.diagonal()
    delta = torch.stack(delta)
    delta[1:] += back[1:].abs()[:, None, None, None, None] * delta[:-1].clone()
    sources = torch.stack([*delta, *output_error]).reshape(2 * steps, 8)
    slopes = [scale[i] * slope(scale[i] * ours[i], times[i]).reshape(8) for i in range(steps)]
    carried = torch.zeros(2 * steps, 8, dtype=torch.float64)
    basis, kept, bounds = torch.eye(2 * steps, dtype=torch.float64)[:, :, None], [], [carried[0]]
    for i in range(steps):
        output = slopes[i] * carried + basis[steps + i]
        kept.append(table.p[i] * carried + table.q[i] * output)
        carried = table.A[i] * carried + basis[i]
        for k, h in zip(range(table.history), reversed(kept), strict=False):
            carried = carried + table.C[i, k] * h
        bounds.append((carried.abs() * sources).sum(0))
    bound = 1.1 * torch.stack(bounds)
    error = (theirs.double() - ours).abs().reshape(steps + 1, 8)
    assert (error <= bound).all(), (error / bound).nan_to_num().amax(1)
    assert bound.max() < 1e-3 * ours.abs().max()
    return float((error / bound)[1:].max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_trajectory_equals_the_schedulers_own(case: Case) -> None:
    for n in STEPS:
        compare(case, n)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_image_to_image_starts_inside_the_schedule(case: Case) -> None:
    stages = getattr(case.make(), "order", 1)
    compare(case, 10, 4 * stages, strength=0.6, strength_rounding="down")
    compare(case, 10, 7 * stages, begin_index=7 * stages)


# Closed forms. Each takes a scheduler whose tensors are float64 and returns the function that makes
# x_{i+1} from x_0 .. x_i, m_0 .. m_i and z_0 .. z_i, as solvers are written in papers: with anchors
# and predictions of x0. They are compared as linear maps of (x_0, m, z), in which neither the scale
# of h nor the choice of anchor is left. In float64 a few dozen roundings of 1e-16, times 1e2 where
# third order divides by h^2, stay below 1e-12; a wrong weight is above 1e-4.


def predict(s, a, b, x, m):
    """Return (x0, noise) for latents a * x0 + b * noise."""
    kind = s.config.prediction_type
    if kind == "epsilon":
        return (x - b * m) / a, m
    if kind == "v_prediction":
        return a * x - b * m, b * x + a * m
    if kind == "sample":
        return m, (x - a * m) / b
    return x - b * m, x + a * m


def products(s, i, previous=None):
    """Return alphas_cumprod of row i and of the step after it."""
    t = int(s.timesteps[i])
    before = t - 1000 // s.num_inference_steps if previous is None else previous
    return s.alphas_cumprod[t], s.alphas_cumprod[before] if before >= 0 else 1.0 + 0 * s.betas[0]


def alpha_sigma(s, i):
    sigma = s.sigmas[i]
    if s.config.get("use_flow_sigmas"):
        return 1 - sigma, sigma
    alpha = (sigma**2 + 1) ** -0.5
    return alpha, sigma * alpha


def log_snr(s, i):
    alpha, sigma = alpha_sigma(s, i)
    return alpha.log() - sigma.log()


def ddim(s, eta):
    def step(i, x, m, z):
        now, then = products(s, i)
        then = s.final_alpha_cumprod if i == len(s.timesteps) - 1 else then
        x0, noise = predict(s, now**0.5, (1 - now) ** 0.5, x[i], m[i])
        spread = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        return then**0.5 * x0 + (1 - then - spread**2) ** 0.5 * noise + spread * z[i]

    return step


def ddpm(s):
    def step(i, x, m, z):
        now, then = products(s, i)
        x0, _ = predict(s, now**0.5, (1 - now) ** 0.5, x[i], m[i])
        alpha = now / then
        mean = then**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - then) * x[i]
        spread = ((1 - then) / (1 - now) * (1 - alpha)) ** 0.5 if s.timesteps[i] > 0 else 0
        return mean / (1 - now) + spread * z[i]

    return step


def cogvideox_ddim(s):
    def step(i, x, m, z):
        now, then = products(s, i)
        x0, _ = predict(s, now**0.5, (1 - now) ** 0.5, x[i], m[i])
        a = ((1 - then) / (1 - now)) ** 0.5
        return a * x[i] + (then**0.5 - now**0.5 * a) * x0

    return step


def cogvideox_dpm(s):
    def log_snr_at(product):
        return (product / (1 - product)).log() / 2

    def step(i, x, m, z):
        last = i == len(s.timesteps) - 1
        x0s = []
        for j in range(i + 1):
            now, then = products(s, j)
            x0s.append(predict(s, now**0.5, (1 - now) ** 0.5, x[j], m[j])[0])
        h = log_snr_at(then) - log_snr_at(now)
        weight = -torch.expm1(-2 * h) * then**0.5
        out = ((1 - then) / (1 - now)) ** 0.5 * torch.exp(-h) * x[i] + weight * x0s[i]
        if i > 0 and not last:
            r = (log_snr_at(now) - log_snr_at(products(s, i - 1)[0])) / h
            out = out + weight / (2 * r) * (x0s[i] - x0s[i - 1])
        return out + ((1 - then) * -torch.expm1(-2 * h)) ** 0.5 * z[i]

    return step


def euler(s):
    def step(i, x, m, z):
        sigma, then = s.sigmas[i], s.sigmas[i + 1]
        if s.config.prediction_type == "epsilon":
            return x[i] + (then - sigma) * m[i]
        move = (then - sigma) / (sigma**2 + 1) ** 0.5
        return x[i] + move * (sigma / (sigma**2 + 1) ** 0.5 * x[i] + m[i])

    return step


def euler_ancestral(s):
    def step(i, x, m, z):
        sigma, then = s.sigmas[i], s.sigmas[i + 1]
        up = (then**2 * (sigma**2 - then**2) / sigma**2) ** 0.5
        return x[i] + ((then**2 - up**2) ** 0.5 - sigma) * m[i] + up * z[i]

    return step


def flow_euler(s):
    def step(i, x, m, z):
        sigma, then = s.sigmas[i], s.sigmas[i + 1]
        if s.config.stochastic_sampling:
            return (1 - then) * (x[i] - sigma * m[i]) + then * z[i]
        return x[i] + (then - sigma) * m[i]

    return step


def pndm(s):
    gap = 1000 // s.num_inference_steps

    def transfer(x, noise, t, then):
        now = s.alphas_cumprod[t]
        then = s.alphas_cumprod[then] if then >= 0 else s.final_alpha_cumprod
        below = now * (1 - then) ** 0.5 + (now * (1 - now) * then) ** 0.5
        return (then / now) ** 0.5 * x - (then - now) / below * noise

    def step(i, x, m, z):
        t = int(s.timesteps[i])
        if i == 1:
            return transfer(x[0], (m[0] + m[1]) / 2, t + gap, t)
        kept = [m[0], *m[2 : i + 1]][::-1]
        weights = (
            [1],
            [1.5, -0.5],
            [23 / 12, -16 / 12, 5 / 12],
            [55 / 24, -59 / 24, 37 / 24, -9 / 24],
        )
        weights = weights[min(len(kept), 4) - 1]
        return transfer(x[i], sum(w * k for w, k in zip(weights, kept, strict=False)), t, t - gap)

    return step


def dpm(s):
    last = len(s.timesteps) - 1
    short = last + 1 < 15
    midpoint, sde = s.config.solver_type == "midpoint", "sde" in s.config.algorithm_type

    def step(i, x, m, z):
        x0 = [predict(s, *alpha_sigma(s, j), x[j], m[j])[0] for j in range(i + 1)]
        (_, sigma), (alpha, then) = alpha_sigma(s, i), alpha_sigma(s, i + 1)
        h = log_snr(s, i + 1) - log_snr(s, i)
        order = min(s.config.solver_order, i + 1, 2 if short and i == last - 1 else 3)
        if i == last and (short or s.config.final_sigmas_type == "zero"):
            order = 1
        fall = torch.expm1(-2 * h if sde else -h)
        out = then / sigma * (torch.exp(-h) if sde else 1) * x[i] - alpha * fall * x0[i]
        if sde:
            out = out + then * (-fall) ** 0.5 * z[i]
        if order == 1:
            return out
        r0 = (log_snr(s, i) - log_snr(s, i - 1)) / h
        d0 = (x0[i] - x0[i - 1]) / r0
        first = alpha * (fall / (2 * h) + 1 if sde else fall / h + 1)
        if order == 2:
            return out + (-alpha * fall / 2 if midpoint else first) * d0
        r1 = (log_snr(s, i - 1) - log_snr(s, i - 2)) / h
        d1 = (x0[i - 1] - x0[i - 2]) / r1
        slope = d0 + r0 / (r0 + r1) * (d0 - d1)
        return out + first * slope - alpha * ((fall + h) / h**2 - 0.5) * (d0 - d1) / (r0 + r1)

    return step


def unipc(s):
    steps, x0, corrected = len(s.timesteps), [], []

    def order(i):
        return min(s.config.solver_order, steps - i, i + 1)

    def weights(i, end, size):
        """Return h, the ratios r_1 .. r_size (the last is 1) and B-scaled moments of a step."""
        h = log_snr(s, end) - log_snr(s, i)
        r = [(log_snr(s, i - k) - log_snr(s, i)) / h for k in range(1, size)] + [torch.ones_like(h)]
        phi, moments = torch.expm1(-h) / -h - 1, []
        for k in range(1, size + 1):
            moments.append(phi * math.factorial(k) / torch.expm1(-h))
            phi = phi / -h - 1 / math.factorial(k + 1)
        r = torch.stack(r)
        return h, r, torch.stack([r**k for k in range(size)]), torch.stack(moments)

    def step(i, x, m, z):
        x0.append(predict(s, *alpha_sigma(s, i), x[i], m[i])[0])
        corrected.append(x[i])
        if i:
            size, (alpha, sigma) = order(i - 1), alpha_sigma(s, i)
            h, r, powers, moments = weights(i - 1, i, size)
            rho = torch.linalg.solve(powers, moments) if size > 1 else [0.5]
            past = [x0[i - 1 - k] for k in range(1, size)] + [x0[i]]
            bend = sum(w * (p - x0[i - 1]) / k for w, p, k in zip(rho, past, r, strict=True))
            drift = sigma / alpha_sigma(s, i - 1)[1] * corrected[i - 1]
            corrected[i] = drift - alpha * torch.expm1(-h) * (x0[i - 1] + bend)
        size, (alpha, sigma) = order(i), alpha_sigma(s, i + 1)
        bend, h = 0, log_snr(s, i + 1) - log_snr(s, i)
        if size > 1:
            h, r, powers, moments = weights(i, i + 1, size)
            rho = [0.5] if size == 2 else torch.linalg.solve(powers[:-1, :-1], moments[:-1])
            past = [x0[i - k] for k in range(1, size)]
            bend = sum(w * (p - x0[i]) / k for w, p, k in zip(rho, past, r[:-1], strict=True))
        return sigma / alpha_sigma(s, i)[1] * corrected[i] - alpha * torch.expm1(-h) * (
            x0[i] + bend
        )

    return step


def heun(s):
    def step(i, x, m, z):
        if i % 2 == 0:
            return x[i] + (s.sigmas[i + 1] - s.sigmas[i]) * m[i]
        return x[i - 1] + (s.sigmas[i] - s.sigmas[i - 1]) * (m[i - 1] + m[i]) / 2

    return step


def kdpm2(s):
    def step(i, x, m, z):
        if i % 2 == 0:
            return x[i] + (s.sigmas_interpol[i + 1] - s.sigmas[i]) * m[i]
        return x[i - 1] + (s.sigmas[i] - s.sigmas[i - 1]) * m[i]

    return step


def lcm(s):
    def step(i, x, m, z):
        last = i == len(s.timesteps) - 1
        now, then = products(s, i, None if last else int(s.timesteps[i + 1]))
        t = s.timesteps[i] * s.config.timestep_scaling  # integer * float: float32
        x0, _ = predict(s, now**0.5, (1 - now) ** 0.5, x[i], m[i])
        clean = 0.25 / (t**2 + 0.25) * x[i] + t / (t**2 + 0.25) ** 0.5 * x0
        return clean if last else then**0.5 * clean + (1 - then) ** 0.5 * z[i]

    return step


CLOSED_FORMS = {
    "ddim": lambda s: ddim(s, 0.0),
    "ddim-v": lambda s: ddim(s, 0.0),
    "ddim-sample": lambda s: ddim(s, 0.0),
    "ddim-eta": lambda s: ddim(s, 1.0),
    "ddim-v-eta": lambda s: ddim(s, 0.5),
    "ddpm": ddpm,
    "cogvideox-ddim": cogvideox_ddim,
    "cogvideox-dpm": cogvideox_dpm,
    "euler": euler,
    "euler-v": euler,
    "euler-karras": euler,
    "euler-ancestral": euler_ancestral,
    "flow-euler": flow_euler,
    "flow-euler-dynamic": flow_euler,
    "flow-euler-stochastic": flow_euler,
    "pndm": pndm,
    "dpm-1": dpm,
    "dpm-2m": dpm,
    "dpm-2m-v": dpm,
    "dpm-2m-heun": dpm,
    "dpm-2m-karras": dpm,
    "dpm-2m-flow": dpm,
    "dpm-2m-sigma-min": dpm,
    "dpm-3m": dpm,
    "dpm-sde-2m": dpm,
    "dpm-sde-2m-heun": dpm,
    "unipc-1": unipc,
    "unipc-2": unipc,
    "unipc-2-v": unipc,
    "unipc-3": unipc,
    "unipc-1-flow": unipc,
    "unipc-2-flow": unipc,
    "unipc-3-flow": unipc,
    "heun": heun,
    "kdpm2": kdpm2,
    "lcm": lcm,
}


@pytest.mark.parametrize("n", [2, 5, 20])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_table_equals_the_closed_form(name: str, n: int) -> None:
    case = CASE[name]
    scheduler = in_float64(case.make())
    table = SolverTable.from_scheduler(scheduler, n, **case.kwargs)
    scheduler.set_timesteps(n, **case.set_timesteps_kwargs)
    steps = table.num_steps
    unit = torch.eye(1 + 2 * steps, dtype=torch.float64)
    m, z = list(unit[1 : steps + 1]), list(unit[steps + 1 :])

    form, x = CLOSED_FORMS[name](scheduler), [unit[0]]
    for i in range(steps):
        x.append(form(i, x, m, z))
    ours, _ = follow(table, unit[0], lambda i, x: m[i], unit[steps + 1 :])
    error = (ours - torch.stack(x)).abs().amax(1) / torch.stack(x).abs().amax(1)
    assert error.max() < 1e-12, error


def test_first_latents_have_the_schedulers_own_scale() -> None:
    scheduler, _ = prepare(CASE["euler"], 10)
    table = SolverTable.from_scheduler(CASE["euler"].make(), 10)
    assert table.init_noise_sigma == float(scheduler.init_noise_sigma) > 1
    # A flow-matching scheduler has no such attribute; its pipelines start from unit noise.
    assert SolverTable.from_scheduler(CASE["flow-euler"].make(), 10).init_noise_sigma == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_table_is_small_and_the_scheduler_unaltered(case: Case) -> None:
    scheduler, _ = prepare(case, 7)
    before = copy.deepcopy(vars(scheduler))
    table = SolverTable.from_scheduler(scheduler, 10, **case.kwargs)
    after = vars(scheduler)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)
        else:
            assert str(after[name]) == str(value), name

    assert table.name == case.scheduler and table.stages == getattr(scheduler, "order", 1)
    assert table.num_steps == len(prepare(case, 10)[1])
    deepest = {"lms": 4, "pndm": 5, "pndm-v": 5, "unipc-3": 4, "unipc-3-flow": 4}
    assert table.history <= deepest.get(case.id, 3)
    assert (torch.maximum(table.p.abs(), table.q.abs()) == 1).all() and (table.q >= 0).all()
    assert (table.S >= 0).all()


def test_rows_lay_the_table_out_for_a_kernel() -> None:
    table = SolverTable.from_scheduler(CASE["euler-ancestral"].make(), 5)
    rows = table.rows()
    assert rows.dtype == torch.float32 and rows.shape == (5, 6 + table.history)
    own = torch.stack((table.p, table.q, table.A, table.S), 1).float()
    assert torch.equal(rows[:, :4], own) and torch.equal(rows[:, 6:], table.C.float())
    assert torch.equal(rows[:-1, 4], table.input_scale[1:].float())
    assert torch.equal(rows[:-1, 5], table.timesteps[1:].float())
    assert (rows[-1, 4:6] == 0).all()
    assert repr(table) == (
        "SolverTable(EulerAncestralDiscreteScheduler: 5 steps, history 1, stages 1)"
    )


class Bent(type(CASE["ddim"].make())):
    """DDIM with a term no table can hold, a part in a million of the latents."""

    term = staticmethod(torch.tanh)

    def step(self, model_output, timestep, sample, eta=0.0, return_dict=True):
        (x, *rest) = super().step(model_output, timestep, sample, eta=eta, return_dict=False)
        return (x + 1e-6 * self.term(sample), *rest)


class Biased(Bent):
    """DDIM plus a constant."""

    term = staticmethod(torch.ones_like)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("DDIMScheduler", {}, "DDIMScheduler: clip_sample=True clamps x0.*clip_sample=False"),
        ("DDPMScheduler", {"clip_sample_range": 1e4}, "DDPMScheduler: clip_sample=True"),
        ("DDPMScheduler", {"thresholding": True}, "DDPMScheduler: thresholding=True"),
        ("UniPCMultistepScheduler", {"thresholding": True}, "thresholding=True"),
        (
            "DDPMScheduler",
            {"variance_type": "learned_range", "clip_sample": False},
            "DDPMScheduler: variance_type='learned_range'.*fixed",
        ),
        (
            "UniPCMultistepScheduler",
            {"solver_p": "a scheduler"},
            "UniPCMultistepScheduler: solver_p='a scheduler'.*solver_p=None",
        ),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "own step 9 gives NaN or Inf"),
        ("FlowMatchLCMScheduler", {"scale_factors": [1.0, 2.0]}, "scale_factors=.1.0, 2.0."),
        ("RePaintScheduler", {}, "RePaintScheduler: step.. needs 'original_image'"),
        ("ScoreSdeVeScheduler", {}, "ScoreSdeVeScheduler: it has no step"),
        ("VQDiffusionScheduler", {"num_vec_classes": 8}, "VQDiffusionScheduler: its own step 0"),
    ],
)
def test_what_is_no_table_is_refused_by_name(name: str, config: dict, message: str) -> None:
    with pytest.raises(UnsupportedSchedulerError, match=message):
        SolverTable.from_scheduler(Case("", name, config).make(), 10)


@pytest.mark.parametrize("scheduler", [Bent, Biased])
def test_a_small_nonlinear_term_is_found(scheduler: type) -> None:
    with pytest.raises(UnsupportedSchedulerError, match="not a linear function of latents"):
        SolverTable.from_scheduler(scheduler(clip_sample=False), 10)


@pytest.mark.parametrize("value", [3, None, "DDIMScheduler", type(CASE["ddim"].make())])
def test_what_is_no_scheduler_is_a_type_error(value) -> None:
    with pytest.raises(TypeError, match="scheduler must be a diffusers scheduler object, got"):
        SolverTable.from_scheduler(value, 10)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (torch.nn.Linear(3, 3), "got the network Linear, .*; it goes into the call: sampler"),
        (types.SimpleNamespace(scheduler=CASE["ddim"].make()), "take its own, .scheduler"),
        (type(CASE["ddim"].make()), r"DDIMScheduler.from_config\(...\) makes an object"),
    ],
)
def test_what_came_in_a_schedulers_place_is_named_shortly(value, hint) -> None:
    with pytest.raises(TypeError, match=hint) as caught:
        SolverTable.from_scheduler(value, 10)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"num_inference_steps": 5.0}, "num_inference_steps must be an int, got 5.0"),
        ({"num_inference_steps": True}, "num_inference_steps must be an int, got True"),
        ({}, "num_inference_steps must be given unless timesteps or sigmas are"),
        ({"num_inference_steps": 5, "strength": 0.0}, "strength must be in .0, 1., got 0.0"),
        ({"num_inference_steps": 5, "strength": 1.5}, "strength must be in .0, 1., got 1.5"),
        ({"num_inference_steps": 5, "strength": 0.1}, "strength must leave a step to run"),
        ({"num_inference_steps": 5, "begin_index": 5}, r"begin_index must be .* \[0, 4\], got 5"),
        ({"num_inference_steps": 5, "begin_index": -1}, r"begin_index must be .* got -1"),
        ({"num_inference_steps": 5, "begin_index": 1, "strength": 0.5}, "exclude each other"),
        ({"num_inference_steps": 5, "step_kwargs": {"etta": 1}}, "one of .*'eta'.*got 'etta'"),
        ({"num_inference_steps": 5, "step_kwargs": {"sample": 1}}, "must not name 'sample'"),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        SolverTable.from_scheduler(CASE["ddim"].make(), **kwargs)
    assert not isinstance(error.value, UnsupportedSchedulerError)


def test_a_default_device_does_not_matter() -> None:
    scheduler = CASE["unipc-3"].make()
    expected = SolverTable.from_scheduler(scheduler, 10)
    with torch.device("meta"):
        rows = SolverTable.from_scheduler(scheduler, 10).rows()
    assert torch.equal(rows, expected.rows())


def test_a_two_stage_solver_starts_at_a_whole_step() -> None:
    with pytest.raises(ValueError, match="begin_index must be a multiple of the 2 stages, got 3"):
        SolverTable.from_scheduler(CASE["heun"].make(), 5, begin_index=3)


def test_timesteps_or_sigmas_replace_the_number_of_steps() -> None:
    table = SolverTable.from_scheduler(CASE["ddpm"].make(), timesteps=[900, 500, 100])
    assert table.timesteps.tolist() == [900, 500, 100]
    table = SolverTable.from_scheduler(CASE["flow-euler"].make(), sigmas=[1.0, 0.6, 0.2])
    assert table.num_steps == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": torch.zeros(0, dtype=torch.float64)}, r"p must have shape \(T,\) with T >= 1"),
        ({"C": torch.zeros(5, 0).double()}, r"C must have shape \(5, K\).*got \(5, 0\)"),
        ({"S": torch.zeros(4).double()}, r"S must have shape \(5,\), got \(4,\)"),
        ({"A": torch.zeros(5)}, "A must be torch.float64, got torch.float32"),
        ({"q": torch.full((5,), math.nan).double()}, "q must be finite, got .nan"),
        ({"start": (math.inf, 1.0)}, "start must be finite"),
        ({"stages": 0}, "stages must be at least 1, got 0"),
    ],
)
def test_fields_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    table = SolverTable.from_scheduler(CASE["ddim"].make(), 5)
    with pytest.raises(ValueError, match=message):
        SolverTable(**{**vars(table), **change})


# Schedulers that cast nothing, so that their own loop in float64 is exact to its rounding.
FLOAT64 = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(FLOAT64),
    kind=st.sampled_from(["epsilon", "v_prediction"]),
    beta_start=st.floats(1e-4, 2e-3),
    beta_end=st.floats(5e-3, 3e-2),
    order=st.integers(1, 3),
    n=st.integers(1, 16),
    skip=st.integers(0, 15),
    eta=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_random_schedules(name, kind, beta_start, beta_end, order, n, skip, eta) -> None:
    config = {"beta_start": beta_start, "beta_end": beta_end, "prediction_type": kind}
    if name in ("DDIMScheduler", "DDPMScheduler"):
        config["clip_sample"] = False
    elif name == "PNDMScheduler":
        config["skip_prk_steps"] = True
    elif name != "HeunDiscreteScheduler":
        config["solver_order"] = order
    kwargs = {"step_kwargs": {"eta": eta}} if name == "DDIMScheduler" else {}
    case = Case("", name, config, kwargs)
    begin = skip % n * getattr(case.make(), "order", 1)
    table = SolverTable.from_scheduler(case.make(), n, begin_index=begin, **kwargs)
    scheduler, timesteps = prepare(case, n, begin or None)
    steps = len(timesteps)
    x, *rest = torch.randn(1 + 2 * steps, 1, 1, 8, 1, dtype=torch.float64)
    m, z = torch.stack(rest).split(steps)
    outputs = iter(m)
    theirs = loop(scheduler, timesteps, lambda u, t: next(outputs), x, z, case.step_kwargs)
    ours, _ = follow(table, x, lambda i, x: m[i], z)
    # from_scheduler takes a share of a row below 1e-11 for rounding.
    assert (ours - theirs).abs().max() < 1e-10 * theirs.abs().max()
