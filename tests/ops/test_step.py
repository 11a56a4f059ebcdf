"""The CPU's ops alone: any number of threads, and both kinds of loops, give one result."""

import pytest
import torch

from adaptive_kernels.ops import reference
from tests.support import problems
from tests.support.agreement import DTYPES, RULES


@pytest.mark.parametrize(("stages", "granularity"), [(1, "sample"), (2, "sample"), (1, "batch")])
def test_reference_advance_agrees_with_the_op(stages, granularity):
    steps = 16 * stages - 1
    table = problems.table(steps, 2, stages)
    for rule in RULES:
        config = problems.config(rule, table, 1.0, granularity=granularity)
        one = problems.state(table, 3, 50, config)
        two = one.clone()
        while bool((one.index < steps).any()):
            for state in (one, two):
                state.model_output.copy_(problems.outputs(state, int(state.index.sum())))
            one.step(True)
            reference.step(*two.arguments(), True)
            assert torch.allclose(one.measures, two.measures, rtol=1e-3, atol=1e-6), rule
            for state in (one, two):
                state.model_output.copy_(problems.outputs(state, int(state.index.sum())))
            one.advance()
            reference.advance(*two.arguments())
            assert torch.equal(one.progress, two.progress), rule
        assert torch.allclose(one.current(), two.current(), atol=1e-5), rule
        assert rule == "never" or steps * 3 > one.nfe.sum() > 3 * 3 * stages, rule


@pytest.mark.parametrize(
    ("rule", "elements"), [("third_order", 40000), ("defect", 40000), ("plan", 100003)]
)
def test_a_result_does_not_depend_on_the_number_of_threads(rule, elements):
    table = problems.table(8, 3, stochastic=True)
    config = problems.config(rule, table, 0.5)
    one = problems.state(table, 3, elements, config, guided=True)
    two, threads = one.clone(), torch.get_num_threads()
    while bool((one.index < table.num_steps).any()):
        output = problems.outputs(one, int(one.index.sum()))
        for state, count in ((one, max(threads, 2)), (two, 1)):
            state.model_output.copy_(output)
            torch.set_num_threads(count)
            try:
                state.advance()
            finally:
                torch.set_num_threads(threads)
        problems.assert_same(one, two)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("guided", [False, True])
def test_the_common_loop_gives_the_bits_of_the_general_one(dtype, rule, guided):
    """A second history term of weight zero sends the same numbers through the general loops."""
    for elements in (1, 16, 255, 257, 1024, 17000):
        table = problems.table(9)
        config = problems.config(rule, table, 0.4)
        common = problems.state(table, 2, elements, config, guided, dtype)
        general = common.clone()
        general.history = torch.zeros(1, 2, elements)
        rows = torch.cat([common.rows, torch.zeros(9, 1)], dim=1)
        general.rows = rows
        for tick in range(9):
            for state in (common, general):
                state.model_output.copy_(problems.outputs(common, tick))
            common.advance()
            general.advance()
        for name in ("latents", "measures", "model_input", "progress", "score", "outputs"):
            if (a := getattr(common, name)) is not None:
                b = getattr(general, name).nan_to_num(7)
                assert torch.equal(a.nan_to_num(7), b), (name, elements)
