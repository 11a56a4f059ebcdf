"""The criteria take the decisions of their sources, step for step."""

import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_kernels.config import AdaptiveConfig

STEPS = 40


def run(config, batch=1, seed=0, stages=1, roughness=1.0):
    """Decisions of the op on random latents: (refreshed [T, B], score, latents y_0 .. y_T)."""
    solver = problems.table(STEPS, 2, stages, seed=seed)
    of = problems.state(solver, batch, 37, config, seed=seed)
    path = [of.current().double()]
    while bool((of.index < solver.num_steps).any()):
        waiting = (of.index < solver.num_steps) & (of.progress[1] == 0)
        if bool(waiting.any()):
            output = problems.outputs(of, int(of.index.max()), seed) * roughness
            of.model_output.copy_(torch.where(waiting[:, None], output, of.model_output))
        of.step(True)
        path.append(of.current().double())
    return of.refreshed, of.score, path, of


def official(path, threshold, max_skip):
    """The authors' loop as reference_rule describes it: one decision list for the whole tensor.

    path: y_{-1}, y_0, ..., the latents before and after every step.
    """
    differences, skips, computed = {}, [], []
    skip_next = False
    for k in range(len(path) - 1):
        computed.append(k <= 3 or not skip_next)
        if k >= 1:
            differences[k] = (path[k + 1] - path[k]).abs().mean().item()
        if k >= 3:
            if len(skips) >= 5 and all(skips[-max_skip:]):
                skip_next = False
            else:
                d, d1, d2 = (differences[k - j] for j in range(3))
                skip_next = abs((d + d2) / 2 - d1) <= threshold * d1
            skips.append(skip_next)
    return computed


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


def paper(path, threshold, max_skip, warmup):
    refreshed, skipped, skip_next = [], 0, False
    for i in range(len(path) - 1):
        refreshed.append(not skip_next)
        skipped = skipped + 1 if skip_next else 0
        skip_next = False
        if i >= 2 and i + 1 >= warmup and skipped < max_skip:
            third = path[i + 1] - 3 * path[i] + 3 * path[i - 1] - path[i - 2]
            skip_next = bool(third.norm() < threshold * (path[i] - path[i - 1]).norm())
    return refreshed


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
    refreshed, score, _, of = run(AdaptiveConfig(criterion="never"), batch=2)
    assert bool(refreshed.all())
    assert bool(score.isnan().all())
    assert of.nfe.tolist() == [STEPS, STEPS]


def test_two_stage_solvers_decide_once_per_whole_step():
    solver_rows = STEPS
    for criterion in ("third_order", "released", "every(3)"):
        refreshed, score, *_ = run(AdaptiveConfig(0.5, 2, criterion), stages=2)
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
    """All differences zero: third_order refreshes on the tie, released skips on it."""
    for criterion, skips in (("third_order", False), ("released", True)):
        solver = problems.table(12)
        of = problems.state(solver, 1, 8, AdaptiveConfig(0.1, 4, criterion))
        of.rows[:, 0] = 0
        of.rows[:, 2] = 1
        of.rows[:, 3] = 0
        of.model_output.zero_()
        for _ in range(12):
            of.step(True)
        assert bool(of.refreshed.all()) is not skips
        assert of.score[5].item() == 1.0
