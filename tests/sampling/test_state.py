"""A state takes starts in, whole or sample by sample, and refuses what does not fit by name."""

import copy
import dataclasses
import pickle
import weakref

import pytest
import torch
from tqdm.auto import tqdm

import adaptive_kernels as ak
from adaptive_kernels.executors.eager import Job, eager
from adaptive_kernels.rules.fills import fill_tables
from adaptive_kernels.sampling.network import NetworkCall
from adaptive_kernels.sampling.start import Start
from adaptive_kernels.sampling.state import State
from tests.support import problems
from tests.support.networks import Network

STEPS = 10


def sampler(**options):
    return ak.AdaptiveSampler(
        problems.ddim(STEPS), config=ak.AdaptiveConfig(0.03, 4, "defect"), **options
    )


def noise(batch=3, seed=0):
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def finish(state, shape=(2, 4, 4)):
    model = Network()
    while bool((state.index < STEPS).any()):
        x = state.model_input.view(-1, *shape)
        state.model_output.copy_(model(x, state.timestep).flatten(1))
        state.advance()
    return state


def test_a_state_that_takes_another_start_in_samples_as_a_new_one():
    one = sampler()
    starts = [one.start(Network(), noise(seed=seed), seed=seed) for seed in (0, 1)]
    used = finish(State.of(starts[0]))
    for name in ("latents", "outputs", "history", "model_output"):
        getattr(used, name).fill_(torch.nan)
    held = [value.data_ptr() for value in problems.tensors(used).values()]
    used.reset(starts[1])
    assert held == [value.data_ptr() for value in problems.tensors(used).values()]
    problems.assert_same(finish(used), finish(State.of(starts[1])))


def test_nothing_that_a_state_is_given_is_part_of_a_graph():
    """What a user trains on is read, and a state of it is copied and pickled as any other."""
    w = torch.ones((), requires_grad=True)
    given = {"step_noise": torch.zeros(STEPS, 3, 2, 4, 4) * w}
    state = sampler(guidance_scale=2 * w).begin(Network(), noise() * w, **given)
    assert not any(t.requires_grad for t in problems.tensors(state).values())
    copy.deepcopy(state), pickle.dumps(state)
    made = torch.nn.Conv2d(2, 2, 3, padding=1)(noise()).flatten(1)
    state.buffers = dataclasses.replace(state.buffers, model_output=made.repeat(2, 1))
    assert not state.model_output.requires_grad and made.requires_grad
    state.advance()
    state.buffers.model_output.copy_(made.repeat(2, 1))
    assert not state.clone().buffers.model_output.requires_grad


def test_a_compiled_advance_after_plain_writes_keeps_no_chain():
    torch.compiler.reset()
    model = torch.nn.Conv2d(2, 2, 3, padding=1)
    state = sampler().begin(model, noise())
    advance = torch.compile(lambda: state.advance(), backend="aot_eager", fullgraph=True)
    alive = []
    for _ in range(3):
        output = model(state.model_input.view(-1, 2, 4, 4)).flatten(1)
        graph = Graph()
        output.grad_fn.metadata["graph"] = graph
        alive.append(weakref.ref(graph))
        state.model_output.copy_(output)
        advance()
        del output, graph
    assert [ref() is None for ref in alive[:2]] == [True, True]
    assert not state.model_output.requires_grad and alive[-1]() is None


class Graph:
    """Lives as long as the autograd node that it is put into."""


def copied(state, output, held):
    state.model_output.copy_(output)


def sliced(state, output, held):
    state.model_output[:] = output


def put(state, output, held):
    state.model_output = output


def written_into_what_was_held(state, output, held):
    held.copy_(output)


def edited(state, output, held):
    state.model_output.copy_(output)
    state.latents.add_(0 * output.sum())


@pytest.mark.parametrize("write", [copied, sliced, put, written_into_what_was_held, edited])
def test_buffers_carry_no_graph_whatever_the_caller_does(write):
    """A loop of one's own that forgets no_grad samples the same, and keeps no activation."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(2, 2, 3, padding=1)
    states = [sampler().begin(model, noise()) for _ in range(2)]
    for number, state in enumerate(states):
        held = state.model_output
        with torch.set_grad_enabled(number == 0):
            while bool((state.index < STEPS).any()):
                output = torch.tanh(model(state.model_input.view(-1, 2, 4, 4))).flatten(1)
                assert output.requires_grad == (number == 0)
                graph = Graph()
                if output.grad_fn is not None:
                    output.grad_fn.metadata["graph"] = graph
                alive = weakref.ref(graph)
                write(state, output, held)
                state.advance()
                del output, graph
                assert alive() is None
                for tensor in problems.tensors(state).values():
                    assert tensor.grad_fn is None and not tensor.requires_grad
    problems.assert_same(*states)


def test_tables_are_shared_between_samplings_and_inputs_are_not():
    one = sampler(guidance_scale=torch.tensor([2.0, 3.0, 4.0]))
    first, second = (one.begin(Network(), noise()) for _ in range(2))
    assert first.tables is second.tables
    for name in ("guidance_scale", "threshold", "seed"):
        assert getattr(first, name).data_ptr() != getattr(second, name).data_ptr()
    first.guidance_scale.zero_()
    first.threshold.zero_()
    again = one.begin(Network(), noise())
    assert torch.equal(again.guidance_scale, torch.tensor([2.0, 3.0, 4.0]))
    assert again.threshold.tolist() == pytest.approx([0.03] * 3)


def changed(start, **inputs):
    return dataclasses.replace(start, inputs=dataclasses.replace(start.inputs, **inputs))


OTHERS = {
    r"shape of latents \(\(1, 32\)\), got \(2, 32\)": lambda s, one: one.start(Network(), noise(2)),
    r"shape of latents \(\(1, 32\)\), got \(1, 16\)": lambda s, one: one.start(
        Network(), noise(1)[:, :1]
    ),
    r"rows of the network \(3\), got 6": lambda s, one: dataclasses.replace(s, guided=True),
    r"dtype \(torch.float32\), got torch.bfloat16": lambda s, one: dataclasses.replace(
        s, dtype=torch.bfloat16
    ),
    r"noise must have shape None, got \(10, 1, 32\)": lambda s, one: changed(
        s, noise=torch.zeros(STEPS, 1, 32)
    ),
    r"threshold must have shape \(1,\), got \(3,\)": lambda s, one: changed(
        s, threshold=torch.zeros(3)
    ),
    r"the state's own tables": lambda s, one: dataclasses.replace(
        s, tables=fill_tables(one.table, one.config)
    ),
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_start_that_does_not_fit_is_refused_and_nothing_is_written(message):
    one = sampler()
    state = one.begin(Network(), noise())
    state.advance(torch.ones(3, 32))
    start = OTHERS[message](one.start(Network(), noise(1, seed=5)), one)
    before = state.clone()
    with pytest.raises(ValueError, match=message):
        state.admit(1, start)
    problems.assert_same(state, before)
    with pytest.raises(ValueError, match="start"):
        state.reset(start)
    problems.assert_same(state, before)


@pytest.mark.parametrize("slot", [-1, 3])
def test_a_slot_that_is_not_there_is_refused(slot):
    one = sampler()
    state = one.begin(Network(), noise())
    with pytest.raises(IndexError, match=f"slot must be 0 to 2, got {slot}"):
        state.admit(slot, one.start(Network(), noise(1)))


def test_a_start_is_made_without_buffers():
    start = Start.of(problems.ddim(STEPS), noise(), ak.AdaptiveConfig.recommended())
    assert start.batch == start.rows == 3 and start.signature()[0] == (3, 32)
    assert State.of(start).nfe.tolist() == [0, 0, 0]


def test_a_state_is_pickled_and_goes_on():
    state = sampler().begin(Network(), noise())
    state.advance(torch.ones(3, 32))
    again = pickle.loads(pickle.dumps(state))
    problems.assert_same(finish(again), finish(state))
    tables = state.tables.to(torch.device("meta"))
    assert tables is state.tables.to(torch.device("meta")) and tables.rows.is_meta
    with pytest.raises(TypeError, match="pickled by an earlier version"):
        State.__setstate__(state, {"latents": state.latents})
    # What was made for other devices stays where it is.
    assert pickle.loads(pickle.dumps(state.tables))._elsewhere == {}


@pytest.mark.parametrize(
    ("slot", "error", "message"),
    [
        (True, TypeError, "slot must be an int, got True"),
        (1.5, TypeError, r"slot must be an int, got 1\.5"),
    ],
)
def test_a_slot_is_a_number(slot, error, message):
    one = sampler()
    state = one.begin(Network(), noise())
    with pytest.raises(error, match=message):
        state.admit(slot, one.start(Network(), noise(1)))


def test_samples_that_decide_together_take_no_other_in():
    config = ak.AdaptiveConfig.paper(threshold=0.1, granularity="batch")
    one = ak.AdaptiveSampler(problems.ddim(STEPS), config=config)
    state = one.begin(Network(), noise())
    with pytest.raises(ValueError, match="granularity 'sample' alone"):
        state.admit(0, one.start(Network(), noise(1)))
    with pytest.raises(TypeError, match="start must be a Start, got State"):
        state.reset(state)


def test_tables_of_another_config_are_refused():
    table, config = problems.ddim(STEPS), ak.AdaptiveConfig.paper(threshold=0.1)
    tables = fill_tables(table, config)
    ak.State.begin(table, noise(), ak.AdaptiveConfig.paper(threshold=0.3), tables=tables)
    for other in (
        ak.AdaptiveConfig.paper(threshold=0.1, max_skip=2),
        ak.AdaptiveConfig(criterion="never"),
    ):
        with pytest.raises(ValueError, match="tables must be fill_tables"):
            ak.State.begin(table, noise(), other, tables=tables)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guidance_scale": 2.0}, TypeError, "guidance_scale must be a tensor, got float"),
        ({"seed": [1, 2, 3]}, TypeError, "seed must be a tensor, got list"),
        (
            {"guidance_scale": torch.tensor(2.0)},
            ValueError,
            r"guidance_scale must have shape \(3,\), got \(\)",
        ),
        ({"seed": torch.arange(3).int()}, ValueError, "seed must be int64, got int32"),
        (
            {"noise": torch.zeros(STEPS, 3, 32).double()},
            ValueError,
            "noise must be float32, got float64",
        ),
    ],
)
def test_what_is_given_to_a_state_is_checked_by_name(options, error, message):
    with pytest.raises(error, match=message):
        ak.State.begin(problems.ddim(STEPS), noise(), ak.AdaptiveConfig(), **options)


def test_a_sampling_by_the_plain_loop_copies_no_step_noise():
    """It is as large as all latents of the sampling together."""
    given = torch.randn(STEPS, 3, 2, 4, 4)
    one = sampler()
    start = one.start(Network(), noise(), step_noise=given)
    network = NetworkCall(Network(), noise().shape, False, None, None, True, noise().device)
    state = eager(Job(network, start, True, None), tqdm(disable=True))
    assert state.index.tolist() == [STEPS] * 3
    assert state.noise.data_ptr() == start.inputs.noise.data_ptr() == given.data_ptr()
    # One that may take in others has its own.
    assert State.of(start).noise.data_ptr() != given.data_ptr()
