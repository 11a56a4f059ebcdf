"""The peers in the fidelity laboratory: equal to their formulas, and worth what they claim."""

import dataclasses
import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler

import adaptive_kernels as ak
from adaptive_kernels.demo.model import NULL_LABEL
from adaptive_kernels.metrics import psnr
from benchmarks.fidelity.methods import adaptive_dpm, deepcache, loop, ours, peers
from benchmarks.fidelity.problem import Batch, Problem, make_scheduler, shipped

SHAPE = (2, 3, 4)
GUIDANCE = 1.5
THRESHOLD = {"ddim-50": 0.002, "euler-50": 0.002, "flow-50": 0.03}  # some skips, some calls
SAMPLES = 3
ALPHAS = make_scheduler("ddim").alphas_cumprod.double().sqrt().tolist()


def alpha_at(timestep):
    """Of the training schedule, ln alpha linear between its timesteps."""
    logs = torch.tensor(ALPHAS, dtype=torch.float64).log()
    low = timestep.long().clamp(max=998)
    return torch.lerp(logs[low], logs[low + 1], timestep.double() - low).exp()


class Signs(torch.nn.Module):
    """The exact network of data whose elements are 1 or -1, tilted by `shift`."""

    def __init__(self, flow: bool) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, model_input, timestep, shift):
        s = timestep.double() / 1000
        alpha = 1 - s if self.flow else alpha_at(timestep)
        sigma = s if self.flow else (1 - alpha**2).sqrt()
        alpha, sigma, shift = (v.view(-1, 1, 1, 1) for v in (alpha, sigma, shift.double()))
        x = model_input.double()
        x0 = torch.tanh(alpha / sigma**2 * x + shift)
        eps = (x - alpha * x0) / sigma
        return (eps - x0 if self.flow else eps).to(model_input.dtype)


def tiny(solver, steps=50):
    def batch(seed):
        noise = torch.randn(SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(seed))
        shift = torch.tensor([-0.4, 0.1, 0.8])
        return Batch(noise, {"shift": shift}, {"shift": 0 * shift}, torch.arange(SAMPLES), seed)

    return Problem(
        f"{solver}-{steps}",
        Signs(solver == "flow"),
        lambda: make_scheduler(solver),
        steps,
        GUIDANCE,
        batch,
        ("a", "b", "c"),
        lambda latents: latents,
    )


def two_classes(solver, steps):
    """The shipped model on one sample of each of two classes."""
    problem = shipped(solver, steps, 1)

    def batch(seed):
        noise = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
        labels = torch.tensor([1, 8])
        null = {"class_labels": torch.full_like(labels, NULL_LABEL)}
        return Batch(noise, {"class_labels": labels}, null, labels, seed)

    return dataclasses.replace(problem, batch=batch)


# The rules once more, of one sample, from all its latents X, outputs M and calls C so far: whether
# step i calls, and what stands for the output if not. Levels are those of the problem's name.


def level(problem, i):
    if problem.name.startswith("flow"):
        s = problem.table().timesteps[i].item() / 1000
        return 1 - s, s
    alpha = ALPHAS[int(problem.table().timesteps[i])]
    return alpha, math.sqrt(1 - alpha**2)


def clean(problem, i, x, m):
    alpha, sigma = level(problem, i)
    if problem.name.startswith("flow"):
        return [a - sigma * b for a, b in zip(x, m, strict=True)]
    return [(a - sigma * b) / alpha for a, b in zip(x, m, strict=True)]


def output(problem, i, x, x0):
    alpha, sigma = level(problem, i)
    eps = [(a - alpha * b) / sigma for a, b in zip(x, x0, strict=True)]
    if problem.name.startswith("flow"):
        return [a - b for a, b in zip(eps, x0, strict=True)]
    return eps


def lagrange(problem, i, nodes, X, M):
    total = [0.0] * len(X[i])
    for j in nodes:
        weight = 1.0
        for n in nodes:
            weight *= 1.0 if n == j else (i - n) / (j - n)
        x0 = clean(problem, j, X[j], M[j])
        total = [t + weight * v for t, v in zip(total, x0, strict=True)]
    return output(problem, i, X[i], total)


def distance(a, b):
    return sum(abs(v - w) for v, w in zip(a, b, strict=True)) / len(a)


def easycache(problem, i, X, M, C):
    if i < 5 or i == 49:
        return True, None
    last, before = [j for j in range(i) if C[j]][:-3:-1]
    rate = distance(M[last], M[before]) / distance(X[last], X[before])
    size = distance(M[last], [0.0] * len(M[last]))
    acc = sum(rate * distance(X[j], X[j - 1]) / size for j in range(last + 1, i + 1))
    return acc >= THRESHOLD[problem.name], [
        x + o - k for x, o, k in zip(X[i], M[last], X[last], strict=True)
    ]


def taylorseer(problem, i, X, M, C):
    if i in (0, 1, 2) or i % 4 == 2:
        return True, None
    c, b, a = [j for j in range(i) if C[j]][:-4:-1]

    def series(f, g, h):
        first, older = (h - g) / (c - b), (g - f) / (b - a)
        return h + first * (i - c) + (first - older) / (c - b) * (i - c) ** 2 / 2

    return False, [series(*v) for v in zip(M[a], M[b], M[c], strict=True)]


def zeus(problem, i, X, M, C):
    k = i - 1
    if 10 <= k <= 23 and k % 3 in (0, 1):
        if C[k]:
            return False, [2 * a - b for a, b in zip(M[k], M[k - 1], strict=True)]
        return False, M[k]
    if 24 <= k <= 44 and k % 6:
        return False, lagrange(problem, i, [j for j in range(i) if j % 6 == 1][-3:], X, M)
    return True, None


def sada(problem, i, X, M, C):
    k, n = i - 1, 50
    if not 10 <= k <= 46 or not any(C[k - 3 : i]):  # at most four skips in a row
        return True, None
    if k >= 24:
        nodes = [j for j in range(i) if j % 4 == 1][-4:]
        return (True, None) if k % 4 == 0 else (False, lagrange(problem, i, nodes, X, M))
    flow = problem.name.startswith("flow")

    def vp(j):
        alpha, sigma = level(problem, j)
        r = math.hypot(alpha, sigma)
        return alpha / r, sigma / r, [v / r for v in X[j]]

    def noise(j):  # the eps of the last call at or before j
        c = max(c for c in range(j + 1) if C[c])
        alpha, sigma = level(problem, c)
        x0 = clean(problem, c, X[c], M[c])
        return [(a - alpha * b) / sigma for a, b in zip(X[c], x0, strict=True)]

    def slope(j):
        alpha, sigma, x = vp(j)
        beta = 2 * math.log(vp(j + 1)[0] / alpha) * n / 1000
        if not flow:
            t = int(problem.table().timesteps[j])
            beta = make_scheduler("ddim").betas[t].item()
        pairs = zip(x, noise(j), strict=True)
        return [-beta * n * a / 2 + beta * n * e / (2 * sigma) for a, e in pairs]

    f = list(zip(slope(k), slope(k - 1), slope(k - 2), strict=True))
    guess = [
        x - (5 / 8 * a + 3 / 4 * b - 3 / 8 * c) / n
        for x, (a, b, c) in zip(vp(k)[2], f, strict=True)
    ]
    gap = [x - y for x, y in zip(vp(i)[2], guess, strict=True)]
    if sum(g * (a - 2 * b + c) for g, (a, b, c) in zip(gap, f, strict=True)) > 0:
        return True, None
    alpha, sigma, _ = vp(i)
    x0 = [(g - sigma * e) / alpha for g, e in zip(guess, noise(k), strict=True)]
    return False, output(problem, i, X[i], x0)


def one_sample(problem, batch, b, rule):
    """(calls [T], latents) of sample b, in scalars; the network alone sees tensors."""
    own = problem.table()
    X, M, C = [batch.noise[b].flatten().double().tolist()], [], []
    for i in range(problem.steps):
        call, m = (True, None) if i == 0 else rule(problem, i, X, M, C)
        if call:
            x, t = torch.tensor(X[i]).double().view(1, *SHAPE), own.timesteps[i].view(1)
            shift = batch.conditioning["shift"][b : b + 1]
            both = [problem.model(x, t, s).flatten().tolist() for s in (0 * shift, shift)]
            m = [u + GUIDANCE * (c - u) for u, c in zip(*both, strict=True)]
        M, C = [*M, m], [*C, call]
        rows = range(max(0, i + 1 - own.history), i + 1)
        h = {
            j: [own.p[j].item() * x + own.q[j].item() * m for x, m in zip(X[j], M[j], strict=True)]
            for j in rows
        }
        X.append(
            [
                own.A[i].item() * x + sum(own.C[i, i - j].item() * h[j][v] for j in rows)
                for v, x in enumerate(X[i])
            ]
        )
    return C, X, M


RULES = {
    "easycache": (lambda name: peers.EasyCache(THRESHOLD[name]), easycache),
    "taylorseer": (lambda name: peers.TaylorSeer(4, order=2), taylorseer),
    "zeus": (lambda name: peers.Zeus(3), zeus),
    "sada": (lambda name: peers.Sada(4), sada),
}


@pytest.mark.parametrize("solver", ["ddim", "flow"])
@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_its_formula(name, solver):
    """Decisions equal; latents and outputs within float32's rounding of 50 steps, 2^-16 of them."""
    make, formula = RULES[name]
    problem = tiny(solver)
    batch = problem.batch(0)
    rule = make(problem.name)
    found = loop.run(problem, batch, rule)
    for b in range(SAMPLES):
        calls, *expected = one_sample(problem, batch, b, formula)
        assert found.refreshed[:, b].tolist() == calls
        assert found.nfe[b] == sum(calls) < problem.steps
        for seen, scalars in zip((rule.trace.x, rule.trace.m), expected, strict=True):
            scalars = torch.tensor(scalars, dtype=torch.float64)
            error = torch.stack(seen)[:, b] - scalars
            assert error.abs().max() <= 2**-16 * scalars.abs().max()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_does_the_same_in_the_coordinates_of_another_solver(name):
    """Euler over sigma / alpha is DDIM in other coordinates; so are the rules' decisions."""
    make, _ = RULES[name]
    runs = [loop.run(p, p.batch(0), make(p.name)) for p in (tiny("ddim"), tiny("euler"))]
    assert torch.equal(runs[0].refreshed, runs[1].refreshed)
    torch.testing.assert_close(runs[0].latents, runs[1].latents, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "dpm2m", "unipc", "flow"])
def test_always_calling_is_the_sampler(solver):
    problem = two_classes(solver, 8)
    batch = problem.batch(0)
    full = ours.sampled(ours.NEVER)(problem, batch)
    plain = loop.run(problem, batch, loop.SkipRule())
    bound = 1e-4 * full.latents.abs().max()
    assert (plain.latents - full.latents).abs().max() <= bound
    assert plain.nfe.tolist() == full.nfe.tolist() == [8, 8]


def test_easycache_without_tolerance_always_calls():
    problem = tiny("flow")
    found = loop.run(problem, problem.batch(0), peers.EasyCache(0.0))
    assert found.refreshed.all()
    assert torch.equal(found.latents, loop.run(problem, problem.batch(0), loop.SkipRule()).latents)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_skipping_the_update_leaves_the_latents_and_the_history(solver):
    problem = tiny(solver, 20)
    rule = loop.SkipUpdate(3)
    found = loop.run(problem, problem.batch(0), rule)
    every = ours.sampled(ours.AdaptiveConfig(criterion="every(3)"))(problem, problem.batch(0))
    assert torch.equal(found.refreshed, every.refreshed)
    x, m, own = rule.trace.x, rule.trace.m, rule.trace.table
    for i in range(20):
        if i % 3:
            assert torch.equal(x[i + 1], x[i])
        elif i >= 3 * own.history:
            expected = own.A[i] * x[i]
            for k, j in enumerate(range(i, i - 3 * own.history, -3)):
                expected += own.C[i, k] * (own.p[j] * x[j] + own.q[j] * m[j])
            torch.testing.assert_close(x[i + 1], expected.float())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_outputs_are_read_in_every_prediction(prediction):
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    own = ak.SolverTable.from_scheduler(scheduler, 10)
    x0, eps = torch.randn(2, 1, 50, generator=torch.Generator().manual_seed(0))
    for i in range(10):
        alpha, sigma = own.levels.alpha[i].item(), own.levels.sigma[i].item()
        m = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[prediction]
        x = alpha * x0 + sigma * eps
        trace = loop.Trace(own, [x] * 11, [m] * 10, torch.ones(10, 1), torch.ones(10, 1))
        for found, expected in ((trace.x0(i), x0), (trace.eps(i), eps), (trace.output(i, x0), m)):
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 / min(alpha, sigma))


def test_no_sample_depends_on_its_batch():
    problem = tiny("flow")
    batch = problem.batch(0)
    for make, _ in RULES.values():
        together = loop.run(problem, batch, make(problem.name))
        first = {"shift": batch.conditioning["shift"][:1]}
        alone = Batch(batch.noise[:1], first, {"shift": torch.zeros(1)}, batch.labels[:1], 0)
        apart = loop.run(problem, alone, make(problem.name))
        assert torch.equal(together.refreshed[:, :1], apart.refreshed)
        torch.testing.assert_close(together.latents[:1], apart.latents)


def scalar_dpm(problem, batch, b, order, rtol, atol):
    """Adaptive DPM-Solver of one sample, as the paper writes it: (NFE, rejections, latents)."""
    logs = [math.log(a) for a in ALPHAS]

    def levels(lam):
        alpha = 1 / math.sqrt(1 + math.exp(-2 * lam))
        return alpha, math.sqrt(1 - alpha**2)

    def lam_of(t):
        return logs[t] - 0.5 * math.log(1 - math.exp(2 * logs[t]))

    def eps(lam, x):
        log = math.log(levels(lam)[0])
        t = max(j for j in range(999) if logs[j] >= log - 1e-12)
        time = torch.tensor([t + (logs[t] - log) / (logs[t] - logs[t + 1])])
        shift = batch.conditioning["shift"][b : b + 1]
        free, held = (
            problem.model(x.view(1, *SHAPE), time, s).flatten() for s in (0 * shift, shift)
        )
        return free + GUIDANCE * (held - free)

    def step(x, s, t):
        alpha_s, sigma, h = levels(s)[0], levels(t)[1], t - s
        e = eps(s, x)

        def coarse(r):
            a, g = levels(s + r * h)
            return a / alpha_s * x - g * math.expm1(r * h) * e

        if order == 2:
            bend = eps(s + h / 2, coarse(1 / 2)) - e
            return coarse(1), coarse(1) - sigma * math.expm1(h) * bend
        bend = eps(s + h / 3, coarse(1 / 3)) - e
        low = coarse(1) - 1.5 * sigma * math.expm1(h) * bend
        weight = 2 * levels(s + 2 * h / 3)[1] * (math.expm1(2 * h / 3) / (2 * h / 3) - 1)
        far = eps(s + 2 * h / 3, coarse(2 / 3) - weight * bend) - e
        return low, coarse(1) - 1.5 * sigma * (math.expm1(h) / h - 1) * far

    timesteps = problem.table().timesteps.tolist()
    here, end = lam_of(timesteps[0]), lam_of(timesteps[-1])
    x = previous = batch.noise[b].flatten().double()
    h, attempts, rejected = 1.0, 0, 0
    while here < end - 1e-9:
        low, high = step(x, here, here + h)
        scale = (rtol * torch.maximum(low.abs(), previous.abs())).clamp(min=atol)
        error = ((high - low) / scale).square().mean().sqrt().item()
        attempts += 1
        if error <= 1:
            x, previous, here = high, low, here + h
        else:
            rejected += 1
        h = min(0.9 * h * error ** (-1 / order), end - here)
    alpha, sigma = levels(end)
    return attempts * order + 1, rejected, (x - sigma * eps(end, x)) / alpha


@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_dpm_is_its_formula(order, monkeypatch):
    # From the usual first step the two orders differ by float32's rounding, which sizes the next.
    monkeypatch.setattr(adaptive_dpm, "FIRST_STEP", 1.0)
    problem = tiny("ddim")
    batch = problem.batch(1)
    found = adaptive_dpm.run(problem, batch, 0.05, order, atol=2e-4)
    rejections = 0
    for b in range(SAMPLES):
        nfe, rejected, latents = scalar_dpm(problem, batch, b, order, 0.05, 2e-4)
        rejections += rejected
        assert found.nfe[b] == nfe
        assert (found.latents[b].flatten() - latents).abs().max() <= 1e-4 * latents.abs().max()
    assert rejections > 0


def test_adaptive_dpm_solves_the_ode():
    problem = two_classes("dpm2m", 100)
    batch = problem.batch(0)
    fine = ours.sampled(ours.NEVER)(problem, batch).latents
    for order in (2, 3):
        tight = adaptive_dpm.run(problem, batch, 1e-3, order, atol=2e-3)
        assert psnr(tight.latents, fine).min() >= 48
        # One call more than the attempts make: the one that takes x0 at the last level.
        assert bool(((tight.nfe - 1) % order == 0).all())


@pytest.mark.parametrize("method", adaptive_dpm.METHODS, ids=lambda method: method.name)
def test_adaptive_dpm_calls_less_the_more_it_tolerates(method):
    problem = tiny("ddim")
    batch = problem.batch(0)
    noise = batch.noise.clone()
    nfe = [method.make(rtol)(problem, batch).nfe.mean().item() for rtol in (0.01, 0.1, 1.0)]
    assert nfe[0] > nfe[1] > nfe[2]
    assert torch.equal(batch.noise, noise)


def test_adaptive_dpm_steps_are_exact_where_eps_is_linear_in_lambda():
    """Order 1 is exact for constant eps, order 3 for eps linear in lambda; order 2 nearly so."""
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    s, h = torch.linspace(-4, 2, 4).double(), torch.tensor([0.2, 0.4, 0.8, 1.6]).double()
    slope = torch.linspace(-1, 1, 7)

    def eps(lam, latents):
        return 0.3 + lam.float()[:, None] * slope

    def antiderivative(lam):  # of exp(-lam) eps
        return -torch.exp(-lam)[:, None] * (0.3 + (lam[:, None] + 1) * slope)

    alpha = [torch.sigmoid(2 * lam).sqrt()[:, None] for lam in (s, s + h)]
    exact = alpha[1] * (x / alpha[0] - antiderivative(s + h) + antiderivative(s))
    second, third = adaptive_dpm._pair(x, s, h, 3, eps)
    assert (third - exact).abs().max() <= 1e-6 * (1 + exact.abs().max())
    first, halves = adaptive_dpm._pair(x, s, h, 2, eps)
    assert (halves - exact).abs().max() < 0.5 * (first - exact).abs().max()
    assert (second - exact).abs().max() < 0.5 * (first - exact).abs().max()


def test_adaptive_dpm_serves_no_flow_matching():
    problem = tiny("flow")
    for method in adaptive_dpm.METHODS:
        assert not method.settings(problem, 25)
        with pytest.raises(ValueError, match="flow-50"):
            method.make(0.05)(problem, problem.batch(0))


@pytest.mark.parametrize("solver", ["ddim", "flow"])
def test_deepcache_of_interval_one_is_the_model(solver):
    problem = two_classes(solver, 8)
    batch = problem.batch(0)
    full = loop.run(problem, batch, loop.SkipRule())
    same, half = (deepcache.make(n)(problem, batch) for n in (1, 2))
    assert torch.equal(same.latents, full.latents)
    assert same.nfe.tolist() == [8, 8]
    assert not torch.equal(half.latents, full.latents)
    assert half.nfe.tolist() == [4 + 4 * deepcache.shallow_share()] * 2
    assert 0 < deepcache.shallow_share() < 0.5


def test_a_shallow_call_at_the_same_place_is_the_full_call():
    unet = two_classes("ddim", 8).model
    cached = deepcache.Cached(unet, 2)
    x, t = torch.randn(2, 1, 32, 32), torch.tensor([500, 20])
    full = cached(x, t)
    assert torch.equal(full, unet(x, t))
    assert torch.equal(full, cached(x, t))  # the second call is a shallow one
    assert not torch.equal(cached(x + 1, t), full)  # the third computes all


def test_settings_lie_around_the_budget():
    assert loop.around(lambda k: 60 / k, range(2, 7), 17) == [3.0, 4.0]
    assert loop.around(lambda k: 60 / k, range(2, 7), 20) == [3.0]
    assert loop.around(lambda k: 60 / k, range(2, 7), 99) == [2.0]
    assert loop.around(lambda k: 60 / k, range(2, 7), 5) == [6.0]
    problem = tiny("ddim")
    batch = problem.batch(0)
    for method in peers.METHODS:
        if method.knob is None:
            for setting in method.settings(problem, 20):
                assert bool((method.make(setting)(problem, batch).nfe < problem.steps).all())
    assert not deepcache.METHODS[0].settings(problem, 20)


def test_no_run_of_zeus_is_longer_than_two_periods():
    for steps, period in itertools.product(range(1, 80), (2, 3)):
        calls = "".join("x."[not c] for c in peers.Zeus.pattern(steps, period))
        assert len(calls) == steps and calls[0] == "x"
        assert max(map(len, calls.split("x"))) <= 2 * period
