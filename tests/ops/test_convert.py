"""The network's dtypes are read exactly and written rounded to nearest even."""

import pytest
import torch

from adaptive_kernels.sampling.state import State
from tests.support import problems


def through_the_op(model_output, input_dtype):
    """x_next = model_output in float32, and model_input = its rounding to input_dtype."""
    n = model_output.shape[1]
    state = State.begin(
        problems.table(2), torch.zeros(1, n), problems.AdaptiveConfig.paper(), dtype=input_dtype
    )
    state.rows.zero_()
    state.rows[:, 1] = 1  # h = m
    state.rows[:, 4] = 1  # the input is not scaled
    state.rows[:, 10] = 1  # x_next = h
    state.advance(model_output)
    return state.current(), state.model_input


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num(0).view(torch.int32), b.nan_to_num(0).view(torch.int32)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_values_are_read_and_written_exactly(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None]
    for cut in (every, every[:, 3:-2]):  # a tail that is no multiple of the vector width
        x_next, model_input = through_the_op(cut.contiguous(), dtype)
        finite = cut.isfinite()
        # 0 * x + inf stays inf; A x adds +0 to -0.
        assert torch.equal(x_next[finite], cut.float()[finite])
        assert torch.equal(x_next.isnan(), cut.isnan())
        assert torch.equal(model_input[finite], cut[finite])
        assert torch.equal(model_input.isinf(), cut.isinf())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_torchs(dtype):
    g = torch.Generator().manual_seed(0)
    scale = torch.randint(-30, 20, (1, 200_003), generator=g).float().exp2()
    values = torch.randn(1, 200_003, generator=g) * scale
    ties = (torch.arange(1, 4001).float() * 2.0**-12 + 1)[None]
    extremes = torch.tensor([[65504.0, 65519.9, 65520.0, 1e30, 3.4e38, 2.0**-24, 2.0**-25, 1e-30]])
    for x in (values, ties, -ties, extremes, -extremes):
        x_next, model_input = through_the_op(x, dtype)
        assert torch.equal(x_next, x)
        assert same(model_input.float(), x.to(dtype).float())
