"""The criteria take the decisions of their sources, step for step."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_kernels.rules.config import AdaptiveConfig
from adaptive_kernels.sampler import AdaptiveSampler
from adaptive_kernels.solvers.table import SolverTable
from tests.support import problems
from tests.support.decisions import official, paper
from tests.support.schedulers import CASE

STEPS = 40


def run(config, batch=1, seed=0, stages=1, roughness=1.0):
    """Decisions of the op on random latents: (refreshed [T, B], score, latents y_0 .. y_T)."""
    table = problems.table(STEPS, 2, stages, seed=seed)
    config = problems.config("plan", table, seed=seed) if config == "plan" else config
    state = problems.state(table, batch, 37, config, seed=seed)
    path = [state.current().double()]
    while bool((state.index < table.num_steps).any()):
        waiting = (state.index < table.num_steps) & (state.progress[1] == 0)
        if bool(waiting.any()):
            output = problems.outputs(state, int(state.index.max()), seed) * roughness
            state.model_output.copy_(torch.where(waiting[:, None], output, state.model_output))
        state.step(True)
        path.append(state.current().double())
    return state.refreshed, state.score, path, state


@given(
    threshold=st.sampled_from([0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1e9]),
    max_skip=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
def test_released_takes_the_decisions_of_the_authors_loop(threshold, max_skip, seed):
    alone = AdaptiveConfig(threshold, max_skip, "released")
    refreshed, score, path, _ = run(alone, seed=seed)
    if not bool(((score - 1).abs() < 1e-4).any()):
        assert refreshed[:, 0].tolist() == official(path, threshold, max_skip)
    together = AdaptiveConfig(threshold, max_skip, "released", granularity="batch")
    refreshed, score, path, _ = run(together, batch=3, seed=seed)
    if not bool(((score - 1).abs() < 1e-4).any()):
        for b in range(3):
            assert refreshed[:, b].tolist() == official(path, threshold, max_skip)


def test_released_first_run_is_five_long_whatever_max_skip():
    refreshed, *_ = run(AdaptiveConfig(1e9, 2, "released"))
    steps = refreshed[:, 0].nonzero()[:, 0].tolist()
    assert steps[:6] == [0, 1, 2, 3, 9, 12]


@given(
    threshold=st.sampled_from([0.0, 0.03, 0.1, 0.2, 0.4, 1.0, 1e9]),
    max_skip=st.integers(0, 6),
    warmup=st.integers(3, 9),
    seed=st.integers(0, 10**6),
)
def test_third_order_takes_the_decisions_of_the_paper(threshold, max_skip, warmup, seed):
    config = AdaptiveConfig(threshold, max_skip, "third_order", warmup=warmup)
    refreshed, score, path, _ = run(config, batch=3, seed=seed)
    for b in range(3):
        if bool(((score[:, b] - 1).abs() < 1e-3).any()):
            continue
        expected = paper([x[b] for x in path], threshold, max_skip, warmup)
        assert refreshed[:, b].tolist() == expected


def test_third_order_over_the_batch_is_the_rule_on_the_whole_tensor():
    config = AdaptiveConfig(0.3, 4, "third_order", granularity="batch")
    refreshed, _, path, _ = run(config, batch=4)
    expected = paper(path, 0.3, 4, 3)
    assert 0 < sum(expected) < STEPS
    for b in range(4):
        assert refreshed[:, b].tolist() == expected


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_every_k_refreshes_every_kth_step(k):
    refreshed, *_ = run(AdaptiveConfig(criterion=f"every({k})"))
    assert refreshed[:, 0].tolist() == [i % k == 0 for i in range(STEPS)]
    refreshed, *_ = run(AdaptiveConfig(criterion=f"every({k})", warmup=4))
    assert refreshed[:, 0].tolist() == [i < 4 or (i - 3) % k == 0 for i in range(STEPS)]


def test_never_refreshes_at_every_step():
    refreshed, score, _, state = run(AdaptiveConfig(criterion="never"), batch=2)
    assert bool(refreshed.all())
    assert bool(score.isnan().all())
    assert state.nfe.tolist() == [STEPS, STEPS]


def test_two_stage_solvers_decide_once_per_whole_step():
    solver_rows = STEPS
    limits = {"third_order": 0.5, "released": 0.5, "every(3)": 0.0, "defect": 0.05}
    configs = [AdaptiveConfig(limit, 2, criterion) for criterion, limit in limits.items()]
    for config in (*configs, AdaptiveConfig(criterion="every(3)", fill="linear"), "plan"):
        refreshed, score, *_ = run(config, stages=2)
        whole = refreshed[:, 0].view(solver_rows // 2, 2)
        assert torch.equal(whole[:, 0], whole[:, 1])
        assert 0 < int(whole[:, 0].sum()) < len(whole)
        assert bool(score[1::2].isnan().all())


def test_the_score_is_the_side_ratio_that_decided():
    config = AdaptiveConfig(0.3, 4, "third_order")
    _, score, path, _ = run(config, batch=2)
    for i in range(3, STEPS):
        x = path[i - 3 : i + 1]
        third = (x[3] - 3 * x[2] + 3 * x[1] - x[0]).norm(dim=1)
        expected = third / (0.3 * (x[2] - x[1]).norm(dim=1))
        assert torch.allclose(score[i].double(), expected, rtol=1e-3)
    assert bool(score[:3].isnan().all())


def test_ties_and_zeros():
    """All differences zero: third_order refreshes on the tie, released and defect skip on it."""
    for criterion, skips in (("third_order", False), ("released", True), ("defect", True)):
        table = problems.table(12)
        threshold = 0.0 if criterion == "defect" else 0.1
        state = problems.state(table, 1, 8, AdaptiveConfig(threshold, 4, criterion))
        state.latents[0] = 0
        state.rows[:, 0] = 0
        state.rows[:, 2] = 1
        state.rows[:, 3] = 0
        state.model_output.zero_()
        for _ in range(12):
            state.step(True)
        assert bool(state.refreshed.all()) is not skips
        assert state.score[5].item() == 1.0


def defect(network, sb, x, tol, max_skip, spread=4.0):
    """The rule of `defect` on one sample, as its source writes it, in float64; DDIM, eps.

    network: (x, step) -> noise prediction. sb: [T + 1] sigma / alpha of every step's latents and of
    the result. Returns the steps that call the network, the latents x_0 .. x_T, and how near the
    nearest decision was to a tie.
    """
    steps = len(sb) - 1
    alpha = [1 / math.sqrt(1 + s * s) for s in sb]
    lam = [-math.log(s) for s in sb[:-1]]
    u = [math.asinh(s / spread) for s in sb]
    path, calls, near = [x], [], math.inf

    def solve(i, e):
        path.append(alpha[i + 1] * (path[-1] / alpha[i] + (sb[i + 1] - sb[i]) * e))

    def fill(j, outputs):
        (n0, e0), *before = outputs
        slope = [(lam[j] - lam[n0]) / (lam[n0] - lam[n1]) * (e0 - e1) for n1, e1 in before]
        return e0 + sum(slope)

    def grown(j, outputs):
        """What the error of the fill at j is a multiple of; of one output alone, of first order."""
        return math.prod(lam[j] - lam[n] for n, _ in outputs)

    i, outputs = 0, []
    while i < steps:
        new, c, run = network(path[-1], i), 0.0, 0
        D = (0.026 + 1 / sb[0]) * new.square().mean().sqrt().item()
        if outputs:
            n0 = outputs[0][0]
            delta, away = new - fill(i, outputs), grown(i, outputs)
            rho = {j: grown(j, outputs) / away for j in range(n0 + 1, i)}
            if rho:
                kappa = sum((sb[j + 1] - sb[j]) * r for j, r in rho.items())
                g = 1 / (1 + abs(kappa) / sb[i])
                c = g * kappa / (sb[i + 1] - sb[i])
            D = delta.square().mean().sqrt().item() / abs(away)
        used = new + c * delta if outputs else new
        first, predicted = len(outputs) < 2, 0.0
        while run < max_skip and i + 1 + run < steps:
            j = i + 1 + run
            w = abs(u[j + 1] - u[j])
            if first:
                predicted += 0.6 * w * D * abs(lam[j] - lam[i])
                if lam[min(j + 1, steps - 1)] - lam[i] > 0.85:
                    break
            else:
                predicted += w * D * abs((lam[j] - lam[i]) * (lam[j] - lam[n0]))
            whole = 3 * predicted if j == steps - 1 else predicted
            near = min(near, abs(whole / tol - 1))
            if whole > tol:
                break
            run += 1
        calls.append(i)
        solve(i, used)
        outputs = [(i, new), *outputs[:1]]
        for j in range(i + 1, i + 1 + run):
            solve(j, fill(j, outputs))
        i += 1 + run
    return calls, path, near


def levels_of(scheduler, steps):
    """[T + 1] float64: sigma / alpha of DDIM's rows and of its result, from its alphas_cumprod."""
    scheduler.set_timesteps(steps)
    kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    return [*((1 - kept) / kept).sqrt().tolist(), 0.0]


def bend(seed):
    """A random smooth network: a bend in latents and timestep that differs by element."""
    g = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, 48, generator=g, dtype=torch.float64)
    return lambda x, t: torch.tanh(0.4 * a * x.double() + b + c * t / 400) + 0.3 * b * t / 1000


@settings(max_examples=40)
@given(
    tol=st.sampled_from([1e-4, 4e-4, 1.6e-3, 6e-3, 0.03, 0.2, 1e9]),
    max_skip=st.integers(0, 8),
    steps=st.sampled_from([3, 10, 20, 40, 50]),
    seed=st.integers(0, 10**6),
)
def test_defect_takes_the_decisions_of_its_source(tol, max_skip, steps, seed):
    case, network = CASE["ddim"], bend(seed)
    scheduler = case.make()
    sb = levels_of(scheduler, steps)
    times = scheduler.timesteps.tolist()
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(seed))

    def model(model_input, timestep):
        return network(model_input, timestep[:, None].double()).float()

    config = AdaptiveConfig(tol, max_skip, "defect")
    sampler = AdaptiveSampler(scheduler, steps, config)
    result = sampler(model, x, progress=False)
    called = result.refreshed
    assert called[0].all()
    gaps = torch.diff(called[:, 0].nonzero()[:, 0])
    assert (gaps - 1 <= max_skip).all()
    for b in range(2):
        expected = defect(lambda x, i: network(x, times[i]), sb, x[b].double(), tol, max_skip)
        calls, path, near = expected
        if near < 1e-3:
            continue
        assert called[:, b].nonzero()[:, 0].tolist() == calls
        # Float32 rounds each of up to 50 steps by some 10 EPS of at most 3 sb times the outputs;
        # a repair at the end of a long run weighs them tenfold.
        assert (result.latents[b] - path[-1]).abs().max() <= 1e-4 * path[-1].abs().max()


def test_the_defect_cases_do_skip_and_do_not():
    """The test above would say little of runs that always or never skip."""
    sb, counts = levels_of(CASE["ddim"].make(), 50), []
    for seed, tol in ((0, 4e-4), (1, 1.6e-3), (2, 6e-3), (3, 0.03)):
        generator = torch.Generator().manual_seed(seed)
        network, x = bend(seed), torch.randn(48, dtype=torch.float64, generator=generator)
        calls, _, _ = defect(lambda x, i, n=network: n(x, 980 - 20 * i), sb, x, tol, 8)
        counts.append(len(calls))
        runs = {b - a for a, b in itertools.pairwise(calls[2:])}
        assert len(runs) > 2, runs
        assert (calls[1] > 1) == (tol > 1e-3)
    assert min(counts) < 20 and max(counts) > 20, counts


def test_defect_warms_up_as_long_as_asked():
    config = AdaptiveConfig(1e9, 3, "defect", warmup=7)
    refreshed, score, *_ = run(config)
    assert refreshed[:, 0].tolist() == [i < 7 or (i - 6) % 4 == 0 for i in range(STEPS)]
    assert score[:7].isnan().all()


def test_the_length_of_a_run_is_known_at_its_refresh():
    """Whatever happens to the latents of the skipped steps, they end where they would have."""
    table = problems.table(STEPS, 2, seed=3)
    state = problems.state(table, 3, 37, AdaptiveConfig(0.005, 6, "defect"), seed=3)
    lengths = set()
    while bool((state.index < STEPS).any()):
        state.model_output.copy_(problems.outputs(state, int(state.index.sum())))
        state.step(True)
        moved = state.clone()
        while bool((state.progress[1] > 0).any()):
            moved.latents.normal_()
            moved.history.normal_()
            state.step(False)
            moved.step(False)
        assert torch.equal(state.progress, moved.progress)
        assert torch.equal(state.score.nan_to_num(7), moved.score.nan_to_num(7))
        lengths |= set((state.index - state.progress[3]).tolist())
    assert len(lengths) > 3, lengths


@pytest.mark.parametrize("batch", [1, 4])
def test_defect_over_the_batch_is_the_rule_on_the_whole_tensor(batch):
    network, steps = bend(11), 50
    sb = levels_of(CASE["ddim"].make(), steps)
    x = torch.randn(batch, 48, generator=torch.Generator().manual_seed(5))
    config = AdaptiveConfig(1.6e-3, 5, "defect", granularity="batch")
    sampler = AdaptiveSampler(CASE["ddim"].make(), steps, config)
    result = sampler(
        lambda x, t: network(x, t[:, None].double()).float(), x, progress=False, gather=False
    )
    calls, _, near = defect(lambda x, i: network(x, 980 - 20 * i), sb, x.double(), 1.6e-3, 5)
    assert near > 1e-3 and 10 < len(calls) < 40
    for b in range(batch):
        assert result.refreshed[:, b].nonzero()[:, 0].tolist() == calls


@pytest.mark.parametrize("name", ["ddim", "dpm-2m", "unipc-2", "pndm", "heun", "flow-euler"])
def test_defect_with_threshold_zero_is_the_plain_run_bit_for_bit(name):
    """So are the plain run's fills: never with fill linear differs by nothing from reuse."""
    table = SolverTable.from_scheduler(CASE[name].make(), 20, **CASE[name].kwargs)
    network, x = bend(4), torch.randn(3, 48, generator=torch.Generator().manual_seed(4))
    results = [
        AdaptiveSampler(table, config=config, guidance_scale=2.0)(
            lambda x, t, shift: network(x + shift[:, None], t[:, None].double()).float(),
            x * table.init_noise_sigma,
            {"shift": torch.ones(3)},
            {"shift": torch.zeros(3)},
            progress=False,
        )
        for config in (
            AdaptiveConfig(criterion="never"),
            AdaptiveConfig(criterion="never", fill="linear"),
            AdaptiveConfig(0.0, 4, "defect"),
        )
    ]
    for result in results:
        assert result.refreshed.all()
        assert torch.equal(result.latents, results[0].latents)
