"""Plans: what a fit gives is what the sampler gives, weights are least squares, masks are found."""

import itertools

import numpy as np
import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.calibration.fit import RIDGE, fit
from adaptive_kernels.calibration.record import Recording, Samples, record
from adaptive_kernels.calibration.search import MOVES, Search, response
from adaptive_kernels.metrics import psnr
from adaptive_kernels.ops.reference import normal
from adaptive_kernels.rules.fills import coordinates
from tests.support.networks import Network, Straight
from tests.support.problems import EPS
from tests.support.schedulers import CASE

SOLVERS = [
    *["ddim", "dpm-2m", "unipc-2", "flow-euler", "heun", "ddim-v", "ddim-sample"],
    *["dpm-2m-flow", "euler-ancestral", "ddim-eta", "dpm-sde-2m"],
]


def table(case, steps=9):
    return ak.SolverTable.from_scheduler(CASE[case].make(), steps, **CASE[case].kwargs)


def problem(case, guided=False, model=None, dtype=None, batch=8, steps=9):
    """(sampler, samples, recording, mask): every third whole step and the one before the last."""
    solver_table = table(case, steps)
    g = torch.Generator().manual_seed(3)
    labels = {"label": torch.rand(batch, generator=g) * 2}
    samples = Samples(
        model or Network(),
        torch.randn(batch, 1, 6, 6, generator=g),
        labels,
        {"label": torch.zeros(batch)} if guided else None,
        torch.arange(batch) * 5,
    )
    never = ak.AdaptiveConfig(criterion="never")
    sampler = ak.AdaptiveSampler(solver_table, None, never, 1.7 if guided else None, dtype)
    whole = torch.arange(solver_table.num_steps) // solver_table.stages
    mask = (whole % 3 == 0) | (whole == whole[-1] - 1)
    return sampler, samples, record(sampler, samples), mask


def sample(sampler, samples, config):
    own = ak.AdaptiveSampler(sampler.table, None, config, sampler.guidance_scale, sampler.dtype)
    arguments = (samples.model, samples.noise, samples.conditioning, samples.unconditional)
    return own(*arguments, seed=samples.seed, progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("case", SOLVERS)
def test_sampling_a_fitted_plan_gives_the_latents_of_the_fit(case, guided, dtype):
    sampler, samples, recording, mask = problem(case, guided, dtype=dtype)
    assert torch.equal(
        sample(sampler, samples, ak.AdaptiveConfig(criterion="never")).latents.flatten(1),
        recording.latents[-1],
    )
    fitted = fit(sampler, samples, recording, mask)
    got = sample(sampler, samples, ak.AdaptiveConfig(criterion="plan", plan=fitted.plan))
    # Bit for bit: the fit steps with the weights as the kernel will read them.
    assert torch.equal(got.latents.flatten(1), fitted.latents)
    assert torch.equal(got.refreshed, mask[:, None].expand_as(got.refreshed))
    assert fitted.plan.calls == mask.sum() == got.nfe[0]


@pytest.mark.parametrize("case", SOLVERS)
def test_a_plan_that_calls_everywhere_is_the_full_run(case):
    sampler, samples, recording, mask = problem(case)
    fitted = fit(sampler, samples, recording, torch.ones_like(mask))
    # Weights other than (1, 0, 0) would only make up for rounding: a few roundings each step, which
    # a network with a slope of about 2 doubles at most.
    bound = 16 * EPS * len(mask) * recording.latents.abs().amax()
    assert (fitted.latents - recording.latents[-1]).abs().amax() <= bound
    weights = torch.tensor(fitted.plan.weights)
    assert torch.allclose(weights, torch.tensor([1.0, 0.0, 0.0]), atol=1e-4)


@pytest.mark.parametrize("case", SOLVERS)
def test_the_weights_of_a_step_are_least_squares(case):
    sampler, samples, recording, mask = problem(case)
    fitted = fit(sampler, samples, recording, mask)
    solver_table, at, plan = sampler.table, coordinates(sampler.table), fitted.plan
    x = (recording.latents[:-1].double() + fitted.error.double()).numpy()
    goal = recording.latents[1:].double().numpy()
    rng = np.random.default_rng(0)
    kept, h = [], []
    for i in range(solver_table.num_steps):
        A, S, C, ps, qs = (
            t[i].numpy() for t in (solver_table.A, solver_table.S, solver_table.C, at.ps, at.qs)
        )
        if plan.refresh[i]:
            kept = [fitted.outputs[i].double().numpy(), *kept][:3]
        E = np.stack([e.ravel() for e in kept], axis=1)
        v = np.array(plan.weights[i][: E.shape[1]])
        used = (E @ v).reshape(x[i].shape)
        z = normal(samples.seed, torch.full_like(samples.seed, i), x.shape[2]).numpy()
        old = sum(C[k] * h[-k] for k in range(1, min(len(C), i + 1)))
        if i == 0:
            assert plan.weights[0] == (1.0, 0.0, 0.0)
            # At alpha = 0 the prediction says nothing of h; where it led does.
            h.append((goal[0] - S * z - A * x[0]) / C[0])
            continue
        h.append(ps * x[i] + qs * used)
        target = (goal[i] - S * z - A * x[i] - old - C[0] * ps * x[i]) / (C[0] * qs)
        ridge = np.sqrt(RIDGE * np.square(E).sum(0).max()) * np.eye(E.shape[1])
        basis = np.concatenate([E, ridge])
        right = np.concatenate([target.ravel(), ridge[:, 0]])
        best = np.linalg.lstsq(basis, right, rcond=None)[0]
        # Float32 latents over the step's coefficient; the ridge bounds what that does to weights.
        noise = 8 * EPS * np.abs(goal[i]).max() / abs(C[0] * qs) * np.sqrt(E.shape[0])
        assert np.linalg.norm(basis @ (v - best)) <= 1e-6 * np.linalg.norm(right) + noise

        def error(weights, basis=basis, right=right):
            return np.square(basis @ weights - right).sum()

        least = error(best)
        assert error(v) <= least + noise**2
        for direction in rng.standard_normal((4, len(v))):
            move = (
                direction * (2 * noise + 0.01 * np.sqrt(least)) / np.linalg.norm(basis @ direction)
            )
            assert error(v + move) > error(v)


def test_a_network_of_zeros_is_planned_and_one_of_nan_refused():
    def zeros(x, timestep, label):
        return torch.zeros_like(x)

    sampler, samples, recording, mask = problem("dpm-2m", model=zeros)
    fitted = fit(sampler, samples, recording, mask)
    assert set(fitted.plan.weights) == {(1.0, 0.0, 0.0)}
    assert torch.equal(fitted.latents, recording.latents[-1])
    search = Search(sampler.table, coordinates(sampler.table), recording, torch.zeros(9).double())
    assert len(search.optima(4, 3)[0]) == 9

    def late(x, timestep, label):
        return x * torch.nan if timestep[0] < 400 else x

    samples = Samples(late, samples.noise, samples.conditioning, None, samples.seed)
    with pytest.raises(ValueError, match="model must return finite outputs, got NaN or Inf before"):
        fit(sampler, samples, recording, mask)


def simulated(solver_table, outputs, gamma, mask):
    """The PSNR of a mask, in full vectors: outputs [T, B, N] and answers e_i + gamma d / sigma."""
    at, (steps, batch, elements) = coordinates(solver_table), outputs.shape
    e = outputs.double().numpy().reshape(steps, -1)
    A, C, ps, qs, sigma = (
        t.numpy() for t in (solver_table.A, solver_table.C, at.ps, at.qs, solver_table.levels.sigma)
    )
    d, dh, kept = np.zeros(e.shape[1]), [], []
    for i in range(steps):
        if mask[i // solver_table.stages]:
            kept = [e[i] + gamma[i] * d / sigma[i], *kept][:3]
        used = kept[0]
        old = sum(C[i, k] * dh[-k] for k in range(1, min(C.shape[1], i + 1)))
        if i > 0:
            E = np.stack(kept, axis=1)
            target = e[i] - (A[i] * d + C[i, 0] * ps[i] * d + old) / (C[i, 0] * qs[i])
            ridge = np.sqrt(RIDGE * np.square(E).sum(0).max()) * np.eye(len(kept))
            basis = np.concatenate([E, ridge])
            right = np.concatenate([target, ridge[:, 0]])
            used = E @ np.linalg.lstsq(basis, right, rcond=None)[0]
        dh.append(ps[i] * d + qs[i] * (used - e[i]))
        d = A[i] * d + C[i, 0] * dh[-1] + old
    return np.mean(10 * np.log10(4 / np.square(d.reshape(batch, elements)).mean(1)))


def random_search(case, steps=9, seed=0):
    """A search over smooth random outputs and a random response."""
    solver_table = table(case, steps)
    g = torch.Generator().manual_seed(seed)
    shape = (solver_table.num_steps, 3, 20)
    outputs = torch.randn(shape, generator=g).cumsum(0).cumsum(0) / solver_table.num_steps
    gamma = torch.rand(solver_table.num_steps, generator=g, dtype=torch.float64) - 0.3
    recording = Recording(torch.zeros(shape[0] + 1, *shape[1:]), outputs)
    return Search(solver_table, coordinates(solver_table), recording, gamma), outputs, gamma


@pytest.mark.parametrize(
    ("case", "history", "stages"),
    [("ddim", 1, 1), ("dpm-2m", 2, 1), ("unipc-2", 3, 1), ("flow-heun", 2, 2), ("heun", 2, 2)],
)
def test_decibels_are_those_of_a_naive_simulation(case, history, stages):
    search, outputs, gamma = random_search(case)
    assert (search.table.history, search.table.stages) == (history, stages)
    g = torch.Generator().manual_seed(1)
    masks = torch.rand(12, search.wholes, generator=g) < 0.5
    masks[:, 0] = True
    masks[0, 1:] = False
    masks[1, 1:3], masks[1, 3:] = True, False
    expected = [simulated(search.table, outputs, gamma.numpy(), mask) for mask in masks]
    assert np.allclose(search.decibels(masks).numpy(), expected, rtol=0, atol=1e-6)
    assert search.decibels(torch.ones_like(masks[:1])).item() > 100


@pytest.mark.parametrize("slope", [0.0, 0.1], ids=["blind", "linear"])
@pytest.mark.parametrize("case", ["ddim", "dpm-2m", "flow-euler", "ddim-eta"])
def test_the_search_predicts_real_runs_of_a_linear_network(case, slope):
    sampler, samples, recording, mask = problem(case, model=Straight(slope))
    solver_table, wholes = sampler.table, sampler.table.num_steps
    masks = torch.zeros(4, wholes, dtype=torch.bool)
    for offset in range(4):
        masks[offset, [0, *range(2 + offset, wholes, 4)]] = True
    gamma = response(solver_table, recording, [fit(sampler, samples, recording, m) for m in masks])
    at = coordinates(solver_table)
    # An output m = ... + slope c x at a latent shifted by d is e = u x + w m: by (u + slope c w) d.
    exact = (at.u + slope * solver_table.input_scale * at.w) * solver_table.levels.sigma[:-1]
    assert torch.allclose(gamma[2:], exact[2:], atol=1e-3 * exact.abs().amax().item() + 1e-4)
    search = Search(solver_table, at, recording, gamma)
    for one in (mask, *masks):
        fitted = fit(sampler, samples, recording, one)
        real = psnr(fitted.latents, recording.latents[-1]).mean().item()
        assert search.decibels(one[None]).item() == pytest.approx(real, abs=0.1)


@pytest.mark.parametrize("case", ["ddim", "heun"])
def test_moves_are_the_legal_ones_the_most_promising_first(case):
    search, _, _ = random_search(case)
    mask = torch.zeros(search.wholes, dtype=torch.bool)
    mask[[0, 1, 4, 8]] = True
    moves = search.moves(mask)
    places = {1, 4, 8}
    expected = {
        frozenset({0, *(places - {i}), i + shift})
        for i, shift in itertools.product(places, MOVES)
        if 0 < i + shift < search.wholes and i + shift not in places
    }
    got = [frozenset(m.nonzero()[:, 0].tolist()) for m in moves]
    assert len(got) == len(set(got))
    assert set(got) == expected
    db = search.decibels(moves)
    assert bool((db[:-1] >= db[1:]).all())
    assert len(search.moves(torch.ones_like(mask))) == 0
    alone = torch.zeros_like(mask)
    alone[0] = True
    assert len(search.moves(alone)) == 0


@pytest.mark.parametrize("calls", [1, 2, 4, 8, 9])
@pytest.mark.parametrize("case", ["ddim", "dpm-2m", "heun"])
def test_optima_are_distinct_local_optima_of_the_calls_asked_for(case, calls):
    search, _, _ = random_search(case)
    optima = search.optima(calls, 5)
    assert 1 <= len({tuple(m.tolist()) for m in optima}) == len(optima) <= 5
    db = search.decibels(torch.stack(optima))
    assert bool((db[:-1] >= db[1:]).all())
    for mask, own in zip(optima, db, strict=True):
        assert bool(mask[0])
        assert int(mask.sum()) == calls
        moves = search.moves(mask)
        # Better by less than the search minds.
        assert not len(moves) or search.decibels(moves).amax() <= own + 1e-3
    again = search.optima(calls, 5)
    assert all(torch.equal(a, b) for a, b in zip(optima, again, strict=True))


def test_a_mask_is_resized_by_the_call_that_matters_most():
    search, _, _ = random_search("dpm-2m")
    mask = torch.zeros(9, dtype=torch.bool)
    mask[[0, 3, 6]] = True
    more, fewer = search.resized(mask, 4), search.resized(mask, 2)
    assert torch.equal(search.resized(mask, 3), mask)
    assert bool((more | mask).eq(more).all()) and int(more.sum()) == 4
    assert bool((fewer & mask).eq(fewer).all()) and int(fewer.sum()) == 2 and bool(fewer[0])
    others = [mask | (torch.arange(9) == i) for i in range(9) if not mask[i]]
    most = search.decibels(torch.stack(others)).amax().item()
    assert search.decibels(more[None]).item() == pytest.approx(most)
