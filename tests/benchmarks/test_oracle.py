"""The greedy oracle: equal to plain searches through the sampler, and its statistics to scipy's."""

import csv
import dataclasses
import itertools
import json
import math

import diffusers
import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.rules.plan import Plan
from benchmarks.fidelity.oracle import __main__ as command
from benchmarks.fidelity.oracle import agreement
from benchmarks.fidelity.oracle import search as oracle
from benchmarks.fidelity.oracle.agreement import chi_square, lowest, spearman
from benchmarks.fidelity.oracle.paths import candidates, fewest_calls, response
from benchmarks.fidelity.oracle.search import Oracle
from benchmarks.fidelity.problem import Batch, Problem, make_scheduler

SHAPE = (2, 3, 2)
SAMPLES = 3
FILLS = ("reuse", "linear")
CELLS = (("ddim", 5), ("euler", 6), ("dpm2m", 6))


def network(model_input, timestep, shift):
    """Depends on the latents, on the sample and, unevenly, on the step."""
    level = (timestep.double() / 1000).view(-1, 1, 1, 1)
    x = model_input.double() + shift.view(-1, 1, 1, 1)
    return (0.7 * torch.tanh(x) + 0.3 * torch.sin(9 * level * (1 + shift.view_as(level)))).to(
        model_input.dtype
    )


def blind(model_input, timestep, shift):
    """Ignores the latents."""
    level, shift = ((v.double()).view(-1, 1, 1, 1) for v in (timestep / 1000, shift))
    place = torch.linspace(-1, 1, math.prod(SHAPE), dtype=torch.float64).view(1, *SHAPE)
    return torch.sin(7 * level * place + 5 * shift * level**2).to(model_input.dtype)


def tiny(solver, steps, model=network, guidance_scale=1.5, scheduler=None):
    def batch(seed):
        noise = torch.randn(SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(seed))
        shift = torch.tensor([-0.4, 0.1, 0.8])
        null = None if guidance_scale is None else {"shift": 0 * shift}
        return Batch(noise, {"shift": shift}, null, torch.arange(SAMPLES), seed)

    make = scheduler or (lambda: make_scheduler(solver))
    names = ("first", "second", "third")
    return Problem(
        f"{solver}-{steps}", model, make, steps, guidance_scale, batch, names, lambda x: x
    )


class Unknown(Problem):
    """A problem whose solver's noise levels are not known."""

    def table(self, steps=None):
        return dataclasses.replace(super().table(steps), levels=None)


def unknown(problem):
    fields = (field.name for field in dataclasses.fields(problem) if field.init)
    return Unknown(**{name: getattr(problem, name) for name in fields})


def weights(table, called, fill):
    """The weights of a plan whose skipped steps use the fill, from its formula."""
    lam = (table.levels.alpha / table.levels.sigma).log()
    found, newest = [], []
    for j, calls in enumerate(called):
        row = (1.0, 0.0, 0.0)
        if calls:
            newest = [j, *newest]
        elif fill == "linear" and len(newest) > 1:
            n0, n1 = newest[:2]
            g = float((lam[j] - lam[n0]) / (lam[n0] - lam[n1]))
            row = (1 + g, -g, 0.0)
        found.append(row)
    return tuple(found)


def resampled(problem, batch, called, fill):
    """The latents of AdaptiveSampler where every sample takes the path `called`."""
    table = problem.table()
    plan = Plan(
        table.name,
        tuple(table.timesteps.double().tolist()),
        tuple(called),
        weights(table, called, fill),
    )
    config = ak.AdaptiveConfig(criterion="plan", plan=plan)
    sampler = ak.AdaptiveSampler(table, config=config, guidance_scale=problem.guidance_scale)
    conditions = batch.conditioning, batch.unconditional
    return sampler(problem.model, batch.noise, *conditions, progress=False).latents


def distances(problem, batch, called, fill, full):
    error = resampled(problem, batch, called, fill) - full
    return error.double().square().flatten(1).mean(1).sqrt()


def legal(called, max_skip):
    runs = [len(list(run)) for calls, run in itertools.groupby(called) if not calls]
    return called[0] and max(runs, default=0) <= max_skip


def naive_greedy(problem, batch, calls, fill, max_skip):
    """One path per sample, each candidate sampled anew from the noise on."""
    steps = problem.steps
    full = resampled(problem, batch, [True] * steps, fill)
    paths = []
    for b in range(SAMPLES):
        called = [True] * steps
        while sum(called) > calls:
            tried = {}
            for k in range(1, steps):
                path = [c and i != k for i, c in enumerate(called)]
                if called[k] and legal(path, max_skip):
                    tried[k] = distances(problem, batch, path, fill, full)[b].item()
            called[min(tried, key=tried.get)] = False
        paths.append(called)
    return torch.tensor(paths)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("solver", "steps"), CELLS)
def test_true_search_is_the_naive_one(solver, steps, fill):
    problem = tiny(solver, steps)
    batch = problem.batch(0)
    found = Oracle(problem, batch, fill, max_skip=3).search(3)
    assert torch.equal(found.called(), naive_greedy(problem, batch, 3, fill, 3))
    for b, called in enumerate(found.called().tolist()):
        expected = resampled(problem, batch, called, fill)[b]
        torch.testing.assert_close(found.latents[b], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("solver", ["ddim", "dpm2m", "unipc"])
def test_any_path_is_the_samplers(solver, fill):
    problem = tiny(solver, 20)
    batch, g = problem.batch(7), torch.Generator().manual_seed(0)
    greedy = Oracle(problem, batch, fill)
    paths = torch.rand(40, 20, generator=g) < 0.45
    paths[:, 0] = True
    paths = torch.tensor([path for path in paths.tolist() if legal(path, oracle.MAX_SKIP)])
    assert len(paths) >= 8
    for b in range(SAMPLES):
        found = greedy.run(paths, torch.full((len(paths),), b)).final
        for path, latents in zip(paths.tolist(), found, strict=True):
            expected = resampled(problem, batch, path, fill)[b].flatten()
            torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fill", FILLS)
def test_single_costs_are_those_of_sampling_anew(fill):
    problem = tiny("dpm2m", 6, guidance_scale=None)
    batch = problem.batch(1)
    costs = Oracle(problem, batch, fill).single_costs()
    full = resampled(problem, batch, [True] * 6, fill)
    assert costs[0].isnan().all()
    for k in range(1, 6):
        expected = distances(problem, batch, [i != k for i in range(6)], fill, full)
        torch.testing.assert_close(costs[k], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", oracle.MODES)
@pytest.mark.parametrize("fill", FILLS)
def test_no_search_beats_the_exhaustive_optimum(mode, fill):
    problem = tiny("euler", 6)
    batch = problem.batch(2)
    greedy = Oracle(problem, batch, fill)
    paths = [(True, *rest) for rest in itertools.product((True, False), repeat=5)]
    for calls in range(2, 7):
        possible = torch.tensor([p for p in paths if sum(p) == calls and legal(p, 4)])
        found = greedy.search(calls, mode)
        for b in range(SAMPLES):
            rows = torch.full((len(possible),), b)
            errors = greedy.distance(greedy.run(possible, rows).final, rows)
            assert found.error[b] >= errors.min() * (1 - 1e-4) - 1e-7
            own = (possible == found.called()[b]).all(1).nonzero()[0, 0]
            assert found.error[b].item() == pytest.approx(errors[own].item(), rel=1e-3, abs=1e-6)
        if calls == 5:
            one = greedy.single_costs()[1:].amin(0)
            assert mode != "true" or torch.allclose(found.error, one, rtol=1e-4)


@pytest.mark.parametrize("mode", ["recorded", "shortlist"])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("solver", ["ddim", "dpm2m"])
def test_forecasts_are_true_where_the_network_ignores_the_latents(solver, fill, mode):
    problem = tiny(solver, 16, blind)
    greedy = Oracle(problem, problem.batch(3), fill)
    true, found = greedy.search(7), greedy.search(7, mode)
    assert torch.equal(found.left, true.left)
    torch.testing.assert_close(found.error, true.error)


@pytest.mark.parametrize("fill", FILLS)
def test_a_measured_response_forecasts_a_network_linear_in_the_latents(fill):
    def linear(model_input, timestep, shift):
        return 0.4 * model_input + blind(model_input, timestep, shift)

    problem = tiny("ddim", 20, linear)
    greedy = Oracle(problem, problem.batch(3), fill)
    called = greedy.everywhere.clone()
    called[:, 2::3] = False
    moving = response(greedy.full, greedy.run(called, greedy.samples), called)
    torch.testing.assert_close(moving, torch.full_like(moving, 0.4), rtol=1e-3, atol=0)
    samples, steps, paths = candidates(called, 5, 4)
    forecast = greedy.recorded(moving)(called, paths, samples, steps)
    true = greedy.true(called, paths, samples, steps)
    torch.testing.assert_close(forecast, true, rtol=1e-2, atol=1e-5)
    without = greedy.recorded(0 * moving)(called, paths, samples, steps)
    assert not torch.allclose(without, true, rtol=0.1)


def test_what_paths_share_is_called_once():
    rows = []

    def counted(model_input, timestep, shift):
        own = timestep.tolist(), shift.tolist(), model_input.flatten(1).tolist()
        rows.extend(zip(*own, strict=True))
        return network(model_input, timestep, shift)

    problem = tiny("euler", 6, counted, guidance_scale=None)
    greedy = Oracle(problem, problem.batch(0))
    found = greedy.search(3)
    assert len(rows) == found.evaluated == len({(t, s, *x) for t, s, x in rows})


@pytest.mark.parametrize("mode", oracle.MODES)
def test_budget_and_limit_are_kept(mode):
    problem = tiny("ddim", 10)
    for calls, max_skip in ((2, 4), (4, 2), (5, 1), (7, 3), (10, 0)):
        found = Oracle(problem, problem.batch(4), max_skip=max_skip).search(calls, mode)
        for n in range(calls, 11):
            called = found.called(n)
            assert (called.sum(1) == n).all()
            assert all(legal(path, max_skip) for path in called.tolist())
        assert torch.equal(found.called(), found.called(calls))
    # Every second step is the one path with so few calls.
    tight = Oracle(problem, problem.batch(4), max_skip=1).search(5, mode)
    assert tight.called().tolist() == [[True, False] * 5] * SAMPLES


def test_fewest_calls_is_the_exhaustive_one():
    paths = torch.tensor([(True, *rest) for rest in itertools.product((True, False), repeat=6)])
    for max_skip in range(4):
        for path, least in zip(paths, fewest_calls(paths, max_skip).tolist(), strict=True):
            inside = paths[(paths <= path).all(1)].tolist()
            assert least == min((sum(p) for p in inside if legal(p, max_skip)), default=8)
    samples, steps, after = candidates(paths[:1], 5, 1)
    assert (samples.tolist(), steps.tolist()) == ([0] * 6, [1, 2, 3, 4, 5, 6])
    assert [row.index(False) for row in after.tolist()] == steps.tolist()


def test_statistics_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 6, (4, 25), generator=g)  # with ties
    y = torch.rand(4, 25, generator=g) + 0.2 * x
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(spearman(x, y).tolist(), expected)
    for table in ([[10, 20], [30, 40]], [[3, 900], [700, 5]], [[7, 7], [7, 7]]):
        known = stats.chi2_contingency(table, correction=False)
        found = chi_square(torch.tensor(table))
        assert found["chi2"] == pytest.approx(known.statistic)
        assert found["p"] == pytest.approx(known.pvalue, rel=1e-6)


def test_statistics_by_hand():
    assert spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 3, 2, 4])) == 0.8
    assert spearman(torch.tensor([1, 1, 2]), torch.tensor([5, 5, 1])) == -1
    found = chi_square(torch.tensor([[10, 20], [30, 40]]))
    assert found["chi2"] == pytest.approx(100 * (10 * 40 - 20 * 30) ** 2 / (30 * 70 * 40 * 60))
    assert found["cramers_v"] == pytest.approx(200 / math.sqrt(30 * 70 * 40 * 60))
    assert (found["agreement"], found["by_chance"]) == (0.5, pytest.approx(0.54))
    values = torch.tensor([[3.0, 1], [1, 1], [2, 1]])
    chosen = [[False, True], [True, True], [True, False]]
    assert lowest(values, torch.tensor([2, 2])).tolist() == chosen


def test_estimators_are_the_rules_left_sides():
    problem = tiny("ddim", 10)
    batch = problem.batch(5)
    found, full = agreement.estimators(problem, batch), Oracle(problem, batch).full
    x = torch.stack(full.latents).double()
    first = x.diff(dim=0)
    third = first.diff(dim=0).diff(dim=0).norm(dim=2)
    d = first.abs().mean(2)
    ratio = third[:-1] / first[1:-2].norm(dim=2)
    torch.testing.assert_close(found["third_order"][3:-1], ratio, rtol=1e-4, atol=0)
    scalar = ((d[3:] + d[1:-2]) / 2 - d[2:-1]).abs() / d[2:-1]
    torch.testing.assert_close(found["released"][4:], scalar, rtol=1e-3, atol=1e-6)
    levels = problem.table().levels
    lam, level = (levels.alpha / levels.sigma).log(), torch.asinh(levels.sigma / levels.alpha / 4)
    for j in range(3, 10):
        i, n0, n1 = j - 1, j - 2, j - 3
        e = [full.outputs[n].double() for n in (i, n0, n1)]
        g = (lam[i] - lam[n0]) / (lam[n0] - lam[n1])
        miss = (e[0] - (1 + g) * e[1] + g * e[2]).square().mean(1).sqrt()
        growth = (lam[j] - lam[i]) * (lam[j] - lam[n0]) / ((lam[i] - lam[n0]) * (lam[i] - lam[n1]))
        expected = miss * growth.abs() * (level[j + 1] - level[j]).abs()
        if j == 9:  # no refresh follows
            expected *= 3
        torch.testing.assert_close(found["defect"][j], expected, rtol=1e-4, atol=0)


def test_methods_give_what_they_found():
    problem = tiny("euler", 10)
    for method in oracle.METHODS:
        assert method.settings(problem, 4.2) == [4]
        assert method.settings(problem, 1) == [2]
        assert method.settings(problem, 10) == []
        batch = problem.batch(6)
        outcome = method.make(4)(problem, batch)
        assert outcome.latents.shape == batch.noise.shape
        assert outcome.nfe.tolist() == outcome.refreshed.sum(0).tolist() == [4] * SAMPLES
    without = unknown(problem)
    assert [method.settings(without, 4) for method in oracle.METHODS] == [[4], []]


def test_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "shipped", lambda solver, steps, samples: tiny(solver, steps))
    words = ["--steps", "10", "--calls", "5", "--out", str(tmp_path), "--no-progress"]
    assert command.main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = [(row["fill"], row["estimator"]) for row in report["agreement"]]
    four = ("third_order", "released", "defect", "other samples")
    assert names == list(itertools.product(FILLS, four))
    assert [row["calls"] for row in report["paths"]] == [5, 5]
    with (tmp_path / "oracle.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 * SAMPLES
    assert sum(int(row["skipped_reuse"]) for row in rows) == 5 * SAMPLES
    assert rows[10]["group"] == "second" and rows[0]["third_order"] == ""
    assert (tmp_path / "oracle.png").read_bytes().startswith(b"\x89PNG")
    lines = agreement.table(report["agreement"]).splitlines()
    assert len(lines) == 10 and lines[0].startswith("| fill   | estimator")
    assert command.main(["--steps", "10", "--calls", "11", "--no-progress"]) == 1
    assert "calls must be from 2 to 10" in capsys.readouterr().err


def test_refusals():
    problem = tiny("euler", 6)
    batch = problem.batch(0)
    greedy = Oracle(problem, batch, max_skip=1)
    with pytest.raises(ValueError, match=r"calls must be from 3 to 6 with 6 steps .* got 2"):
        greedy.search(2)
    with pytest.raises(ValueError, match=r"mode must be one of true, recorded, .* got 'fast'"):
        greedy.search(4, "fast")
    with pytest.raises(ValueError, match="fill must be one of reuse, linear, got 'cubic'"):
        Oracle(problem, batch, "cubic")
    with pytest.raises(ValueError, match="max_skip must be at least 0, got -1"):
        Oracle(problem, batch, max_skip=-1)
    for name in ("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"):
        other = tiny(name, 6, scheduler=getattr(diffusers, name))
        with pytest.raises(ValueError, match=f"adds no noise and calls the network once.*{name}"):
            Oracle(other, batch)
    with pytest.raises(ValueError, match=r"fill must be 'reuse' for .*Euler"):
        Oracle(unknown(problem), batch, "linear")
    assert list(agreement.measure(unknown(tiny("euler", 9)), batch, 5).found) == ["reuse"]
    for table, why in (([[1, 2]], "2x2"), ([[1, -2], [3, 4]], "2x2"), ([[0, 0], [3, 4]], "empty")):
        with pytest.raises(ValueError, match=f"table must .*{why}.* got"):
            chi_square(torch.tensor(table))
    with pytest.raises(ValueError, match=r"x and y must be \[..., n\], got \(3,\) and \(2,\)"):
        spearman(torch.zeros(3), torch.zeros(2))
