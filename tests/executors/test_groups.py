"""How far `groups` launches ahead: never short, never a call too many, no wait without need."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_kernels import AdaptiveConfig
from adaptive_kernels.executors.groups import least_groups, run_ahead
from adaptive_kernels.ops import reference
from adaptive_kernels.rules import criteria
from tests.support import problems

CRITERIA = [*(name for name in criteria.CRITERIA if name != "every"), "every(1)", "every(3)"]


def make_config(criterion, table, max_skip, warmup, seed):
    if criterion == "plan":
        return AdaptiveConfig(criterion="plan", plan=problems.plan(table, seed))
    skips = max(max_skip, 1) if criterion == "released" else max_skip
    least = AdaptiveConfig(criterion=criterion).kind.warmup
    return AdaptiveConfig(max_skip=skips, criterion=criterion, warmup=max(warmup, least))


def sampling(table, config, choose):
    """[index after every group] of one sample whose free decisions are `choose()`: the rule itself.

    A decision is free where the sums decide it: they are made to skip or to refresh.
    """
    rule, index, run, at = config.rule(table), 0, 0, []
    while index < table.num_steps:
        index, run = index + 1, run + 1
        refresh = False
        if index < table.num_steps:
            skip = choose()
            predicted = float(config.plan.refresh[index]) if config.plan else (0.0 if skip else 2.0)
            first = [torch.ones(1, dtype=torch.float64) for _ in range(3)]
            if rule.criterion == criteria.RELEASED and not skip:
                first[0] *= 9
            refresh, _ = reference.decide(
                rule,
                torch.tensor([index - 1]),
                torch.tensor([run]),
                torch.full((1,), 0.0 if skip else 9.0, dtype=torch.float64),
                *first,
                1,
                torch.tensor([predicted], dtype=torch.float64),
                torch.ones(1, dtype=torch.float64),
            )
            refresh = bool(refresh)
        if refresh:
            run = 0
        if refresh or index == table.num_steps:
            at.append(index)
    return at


@functools.cache
def make_problem(criterion, steps, stages, max_skip, warmup, seed):
    table = problems.table(steps, 2, stages, seed=seed)
    config = make_config(criterion, table, max_skip, warmup, seed)
    return table, config, least_groups(table, config)


class Device:
    """Groups that end when the clock says so; it knows what the host could know at each moment."""

    def __init__(self, paths, least, durations):
        self.paths, self.least, self.durations = paths, least, durations
        self.groups, self.known, self.waits = [], 0, 0

    def launch(self):
        self.groups.append(self)
        return self.Under(self, len(self.groups) - 1)

    def index(self, k):
        """Steps done by every sample after group k; a finished sample stays."""
        return [path[min(k, len(path) - 1)] for path in self.paths]

    class Under:
        def __init__(self, device, k):
            self.device, self.k = device, k

        def done(self):
            return next(self.device.durations)

        def wait(self):
            self.device.waits += 1
            self.device.known = self.k + 1
            return self.device.index(self.k)


@st.composite
def samplings(draw):
    criterion = draw(st.sampled_from(CRITERIA))
    stages = draw(st.integers(1, 3))
    arguments = (
        draw(st.integers(1, 60)),
        stages,
        draw(st.integers(0, 7)),
        draw(st.integers(1, 6)),
        draw(st.integers(0, 3)),
    )
    table, config, least = make_problem(criterion, *arguments)
    often = draw(st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    batch = draw(st.integers(1, 4))

    def choose():
        return bool(torch.rand((), generator=g) < often)

    paths = [sampling(table, config, choose) for _ in range(batch)]
    quick = draw(st.sampled_from([0.0, 0.5, 1.0]))

    def finished():
        while True:
            yield bool(torch.rand((), generator=g) < quick)

    return paths, least, finished()


@given(samplings())
def test_as_many_groups_as_the_slowest_sample_needs(case):
    """Whatever the decisions, and however late the host learns of them."""
    paths, least, durations = case
    device = Device(paths, least, durations)
    assert run_ahead(device.launch, least) == len(device.groups) == max(map(len, paths))


@given(samplings())
def test_a_bound_that_every_sampling_keeps(case):
    """least(i) groups at least are left at every step that a sampling comes to."""
    paths, least, _ = case
    for path in paths:
        for k, index in enumerate([0, *path]):
            assert least[index] <= len(path) - k


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("stages", [1, 2])
def test_the_bound_is_reached(criterion, stages):
    """By the sampling that skips where it can: a larger bound would launch a call too many."""
    for steps in (1, 2, 7, 30):
        for max_skip in (0, 1, 4):
            table, config, least = make_problem(criterion, steps, stages, max_skip, 1, 0)
            assert len(sampling(table, config, lambda: True)) == least[0], (steps, max_skip)


@given(samplings())
def test_the_host_waits_only_where_what_is_under_way_may_be_all(case):
    paths, least, _ = case
    device = Device(paths, least, iter(lambda: False, True))
    launch, wait = device.launch, Device.Under.wait
    under_way = []

    def launched():
        under_way.append(len(under_way))
        return launch()

    def waited(group):
        """Were another group surely needed, the host would have launched it before it waited."""
        known = device.index(device.known - 1) if device.known else [0] * len(paths)
        flying = len(device.groups) - device.known
        assert flying >= max(least[i] for i in known)
        return wait(group)

    Device.Under.wait = waited
    try:
        run_ahead(launched, least)
    finally:
        Device.Under.wait = wait


def test_a_fixed_pattern_is_launched_without_waiting():
    for criterion in ("never", "every(3)", "plan"):
        table, config, least = make_problem(criterion, 40, 1, 0, 1, 0)
        path = sampling(table, config, lambda: True)
        device = Device([path], least, iter(lambda: False, True))
        waits = []
        launch = device.launch

        def counted(device=device, launch=launch, waits=waits):
            waits.append(device.waits)
            return launch()

        assert run_ahead(counted, least) == len(path)
        assert set(waits) == {0}


def test_every_sample_is_told_of():
    table, config, least = make_problem("third_order", 30, 1, 3, 1, 0)
    paths = [sampling(table, config, lambda k=k: k % 2 == 0) for k in range(2)]
    news = []
    run_ahead(Device(paths, least, iter(lambda: False, True)).launch, least, news.append)
    assert news[-1] == [30, 30] and news == sorted(news)
