"""One step against `reference`: what must agree, and how closely."""

import torch
from hypothesis import assume
from hypothesis import strategies as st

from adaptive_kernels.ops import reference
from adaptive_kernels.rules import criteria
from tests.support import problems

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
RULES = [*problems.REUSE, *problems.FILLED]


# What a step may be asked; a test adds the rule and `elements`. Hypothesis tries the first of each
# first, all together: no simple case.
ANY_STEP = {
    "dtype": st.sampled_from(DTYPES[::-1]),
    "guided": st.sampled_from([True, False]),
    "history": st.sampled_from([3, 1, 2, 4, 5, 8]),
    "stages": st.sampled_from([2, 1, 1]),
    "noise": st.sampled_from(["given", "none", "seeds"]),
    "batch": st.sampled_from([2, 1, 3]),
    "granularity": st.sampled_from(["batch", "sample", "sample"]),
    "seed": st.integers(0, 10**6),
}

# A batch in the middle of a sampling; a test adds the rule.
ANY_MIDWAY = {
    "batch": st.sampled_from([5, 1, 3]),
    "elements": st.sampled_from([33, 1, 8, 300]),
    "history": st.sampled_from([3, 1, 2]),
    "seed": st.integers(0, 10**6),
}


def any_state(
    whole,
    threshold,
    *,
    rule,
    dtype,
    guided,
    history,
    stages,
    noise,
    batch,
    elements,
    granularity,
    seed,
    max_skip=3,
):
    """A state at its start, of what was drawn; `whole` steps of the solver and half a one."""
    steps = whole * stages + 1
    table = problems.table(steps, history, stages, noise != "none", seed)
    config = problems.config(rule, table, threshold, max_skip, granularity, seed)
    given = None
    if noise == "given":
        generator = torch.Generator().manual_seed(seed)
        given = torch.randn(steps, batch, elements, generator=generator)
    return problems.state(table, batch, elements, config, guided, dtype, seed, noise=given)


def midway(rule, batch, elements, history, seed):
    """A state with samples at other steps and runs, finished ones among them."""
    table = problems.table(11, history, seed=seed)
    config = problems.config(rule, table, threshold=0.5, max_skip=2, seed=seed)
    return problems.midway(problems.state(table, batch, elements, config, seed=seed), seed)


def still(state, fresh):
    """[B] bool: the samples that a step leaves alone."""
    done = state.index == len(state.rows)
    return done | ((state.run == 0) & (not fresh))


def assert_nan_stays_in_its_sample(clean):
    """NaN and Inf of sample 1 make it refresh, and leave the two others what they are.

    Args:
        clean: three samples at their start, at a threshold that skips all it may.
    """
    sick, steps = clean.clone(), len(clean.rows)
    for tick in range(steps):
        output = problems.outputs(clean, tick)
        for state in (clean, sick):
            state.model_output.copy_(output)
        if tick >= 1:
            sick.model_output[1, 5] = torch.inf if tick % 2 else torch.nan
        clean.advance()
        sick.advance()
        assert torch.equal(clean.current()[[0, 2]], sick.current()[[0, 2]])
    assert clean.nfe[0] < steps
    assert torch.equal(clean.nfe[[0, 2]], sick.nfe[[0, 2]])
    assert bool(sick.refreshed[:, 1].all())
    assert not bool(clean.refreshed[:, 1].all())


def assert_sampling_agrees(state, seed):
    """Every step of a sampling against `reference`: norms, scores and network input, too."""
    dtype, batch = state.model_input.dtype, state.latents.shape[1]
    unit = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    # A defect of one element may cancel: outputs of up to 8, a spread of up to 10.
    atol = 1e-6 if "defect" in criteria.of(state.rule.criterion).sums else 1e-8
    while bool((state.index < len(state.rows)).any()):
        state.model_output.copy_(problems.outputs(state, int(state.index.sum()), seed))
        for fresh in (True, False):
            expected, bound = assert_step_agrees(state, fresh)
            got = problems.elsewhere(state)
            right, few = expected.measures, state.latents.shape[2] < 16
            # Sums of differences d are off by what latents are: sum |e|, or 2 |d| e of squares.
            # Those of few elements may cancel to little else.
            size = few * 2 * bound.sum(1, keepdim=True) * (1 + right.sqrt())
            wrong = (got.measures - right).abs() > atol + 1e-4 * right + size
            assert not bool(wrong.any()), (got.measures, right)
            assert torch.equal(got.measures.isnan(), right.isnan())
            assert torch.equal(got.score.isnan(), expected.score.isnan())
            error = (got.model_input.double() - expected.model_input.double()).abs()
            limit = 2 * unit * expected.model_input.double().abs() + 2**-24
            limit += 1.5 * bound.repeat(len(error) // batch, 1)
            assert bool((error <= limit).all())


def assert_step_agrees(state, fresh):
    """One op step against one reference step from the same state; returns the reference's."""
    before, expected = problems.elsewhere(state), problems.elsewhere(state)
    bound = problems.update_bound(before, fresh)
    state.step(fresh)
    reference.step(*expected.arguments(), fresh)
    state = problems.elsewhere(state)
    moved = state.index > before.index
    assert torch.equal(state.index, expected.index)
    batch = torch.arange(state.latents.shape[1])
    slot = state.index.long() % state.latents.shape[0]
    error = (state.latents[slot, batch].double() - expected.latents[slot, batch].double()).abs()
    # Both store float32: half a unit in the last place of the result on top of the bound.
    stored = expected.latents[slot, batch].double().abs() * problems.EPS
    assert bool((error <= bound + 2 * stored)[moved].all()), (error - bound).max()

    # Everything but the new latents' slot is untouched, bit for bit.
    keep = torch.ones(state.latents.shape[:2], dtype=torch.bool)
    keep[slot[moved], batch[moved]] = False
    bits = (state.latents.view(torch.int32), before.latents.view(torch.int32))
    assert torch.equal(bits[0][keep], bits[1][keep])
    if state.outputs is not None:
        assert_outputs_agree(state, expected, before, moved & (before.run == 0))

    near = (expected.score.nan_to_num(0) - 1).abs() < 1e-4
    assume(not bool(near.any()))
    assert torch.equal(state.refreshed, expected.refreshed)
    assert torch.equal(state.progress, expected.progress)
    assert torch.equal(state.timestep, expected.timestep)
    assert torch.equal(
        state.model_input[~rows_of(moved, state)], before.model_input[~rows_of(moved, state)]
    )
    return expected, bound


def assert_outputs_agree(state, expected, before, called):
    """A network call leaves e = u x + w m in the ring's next slot, and no other slot changes."""
    slot, batch = before.nfe.long() % len(state.outputs), torch.arange(state.latents.shape[1])
    new, right = state.outputs[slot, batch].double(), expected.outputs[slot, batch].double()
    row = state.rows[before.index.clamp(max=len(state.rows) - 1).long()].double().abs()
    x = before.latents[before.index.long() % len(before.latents), batch].double().abs()
    m = before.model_output.double().abs()
    if len(m) > len(x):
        m = m[: len(x)] + state.guidance_scale[:, None].abs() * (m[len(x) :] + m[: len(x)])
    # Guidance 3, product 1, addition 1, and one each for storing float32.
    own = row[:, 6, None] * x + row[:, 7, None] * m
    # Less a share of the defect: fill 4, difference 1, product 1, difference 1.
    share = problems.share(before)[:, None]
    weights, old = problems.kept(before)
    filled = torch.einsum("bk,kbn->bn", weights[:, :3].abs(), old.abs())
    bound = problems.EPS * (7 * own + 10 * share * (own + filled))
    assert bool(((new - right).abs() <= bound)[called].all())
    keep = torch.ones(state.outputs.shape[:2], dtype=torch.bool)
    keep[slot[called], batch[called]] = False
    bits = (state.outputs.view(torch.int32), before.outputs.view(torch.int32))
    assert torch.equal(bits[0][keep], bits[1][keep])


def rows_of(mask, state):
    return mask.repeat(len(state.model_input) // max(len(mask), 1))
