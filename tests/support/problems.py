"""Problems for the ops: random tables and states, and the bound their results must meet."""

import dataclasses
import threading

import torch

from adaptive_kernels.ops import fields
from adaptive_kernels.ops.fields import OUTPUTS, SCALARS
from adaptive_kernels.rules import criteria, defect
from adaptive_kernels.rules.config import AdaptiveConfig
from adaptive_kernels.rules.plan import Plan
from adaptive_kernels.sampling.start import Inputs, Start
from adaptive_kernels.sampling.state import State
from adaptive_kernels.solvers.levels import NoiseLevels
from adaptive_kernels.solvers.table import SolverTable

EPS = 2.0**-24  # unit roundoff of float32
# Every criterion that reuses outputs, and every way to fill otherwise; names for config().
REUSE = ["never", "every(2)", "third_order", "released"]
FILLED = [
    "defect",
    "defect noise",
    "every(3) linear",
    "third_order linear repair",
    "released linear",
    "plan",
]


def table(steps=12, history=1, stages=1, stochastic=False, seed=0, timesteps=torch.int64):
    """A random linear solver whose latents stay of about unit size."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape, low=-1.0, high=1.0):
        return torch.rand(*shape, generator=g, dtype=torch.float64) * (high - low) + low

    return SolverTable(
        p=uniform(steps) * 0.5,
        q=uniform(steps, low=0.5),
        A=uniform(steps, low=0.85, high=0.99),
        S=uniform(steps, low=0.05, high=0.3) * stochastic,
        C=uniform(steps, history) * 0.1,
        input_scale=uniform(steps, low=0.5, high=1.5),
        timesteps=torch.linspace(999, 1, steps).to(timesteps),
        init_noise_sigma=1.0,
        start=(0.6, 0.8),
        stages=stages,
        name="random",
        levels=levels(steps, seed),
    )


def levels(steps, seed=0):
    """Levels of unit variance from near noise to near data, and a network that predicts v.

    Under v all of u, w, ps and qs are numbers of their own. The levels are spaced evenly up to a
    third, so that no extrapolation reaches far.
    """
    g = torch.Generator().manual_seed(seed + 7)
    jitter = (torch.rand(steps + 1, generator=g, dtype=torch.float64) - 0.5) / 3
    alpha = 0.3 + 0.65 * (torch.arange(steps + 1) + 0.5 + jitter) / (steps + 1)
    sigma = (1 - alpha.square()).sqrt()
    return NoiseLevels(alpha, sigma, -sigma[:-1], alpha[:-1].clone(), "v_prediction")


def config(rule, table, threshold=0.3, max_skip=3, granularity="sample", seed=0):
    """The config of a name of REUSE or FILLED that skips some of the steps of a random solver."""
    criterion, *words = rule.split()
    if criterion == "plan":
        return AdaptiveConfig(criterion="plan", plan=plan(table, seed), granularity=granularity)
    return AdaptiveConfig(
        threshold * (0.05 if criterion == "defect" else 1),
        max_skip,
        criterion,
        fill="linear" if "linear" in words else None,
        repair=True if "repair" in words and not bool(table.S.any()) else None,
        granularity=granularity,
        output_noise=0.05 if "noise" in words else None,
    )


def plan(table, seed=0):
    """A random mask, whole steps at a time, and random weights that add up to about one."""
    g = torch.Generator().manual_seed(seed + 3)
    steps = table.num_steps
    called = torch.rand(-(-steps // table.stages), generator=g) < 0.5
    called[0] = True
    called = called.repeat_interleave(table.stages)[:steps]
    weights = torch.randn(steps, OUTPUTS, generator=g, dtype=torch.float64) * 0.3
    weights[:, 0] += 1
    exist = called.cumsum(0)[:, None] > torch.arange(OUTPUTS)
    return Plan(
        table.name,
        tuple(table.timesteps.double().tolist()),
        tuple(called.tolist()),
        tuple(map(tuple, (weights * exist).tolist())),
    )


def state(
    table, batch, elements, config=None, guided=False, dtype=torch.float32, seed=0, **options
):
    g = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(batch, elements, generator=g)
    scale = torch.rand(batch, generator=g) * 4 if guided else None
    config = config or AdaptiveConfig.paper()
    begun = State.begin(table, x, config, guidance_scale=scale, dtype=dtype, **options)
    # Whatever an op must not read is NaN.
    begun.latents[1:] = torch.nan
    begun.history.fill_(torch.nan)
    if begun.outputs is not None:
        begun.outputs.fill_(torch.nan)
    return begun


def ready(rule="third_order", threshold=0.3, **options):
    """A small state in which an op may read everything."""
    small = table(8, 2)
    begun = state(small, 2, 40, config(rule, small, threshold), **options)
    begun.latents.nan_to_num_(0.5)
    begun.history.nan_to_num_(0.5)
    if begun.outputs is not None:
        begun.outputs.nan_to_num_(0.5)
    begun.model_output.copy_(outputs(begun, 0))
    return begun


def midway(state, seed=0):
    """The state's samples in the middle of everything: other steps and runs, finished ones too."""
    g = torch.Generator().manual_seed(seed)
    (_, batch, elements), steps = state.latents.shape, len(state.rows)

    def back():
        return torch.randint(1, 6, (batch,), generator=g)

    state.latents.copy_(torch.randn(state.latents.shape, generator=g))
    state.history.copy_(torch.randn(state.history.shape, generator=g))
    measures = torch.rand(state.measures.shape, generator=g, dtype=torch.float64)
    if criteria.NAME[state.rule.criterion] == "defect":
        # Samples without noise among others.
        measures[::3, defect.VARIANCE] = 0
        state.output_noise.copy_(torch.rand(batch, generator=g).sub_(0.3).clamp_(0))
        measures[:, defect.VARIANCE].clamp_(max=state.output_noise.double().square())
    else:
        measures *= elements
    state.measures.copy_(measures)
    for row, most in enumerate((steps + 1, 4, 6)):
        state.progress[row] = torch.randint(0, most, (batch,), generator=g)
    state.progress[3] = (state.progress[0] - back()).clamp(min=0)
    state.progress[4] = (state.progress[3] - back()).clamp(min=0)
    if criteria.NAME[state.rule.criterion] == "defect":
        # A share there is of lines through two outputs alone.
        entries, _ = kept(state)
        line = (entries[:, :2] != 0).all(1) & (state.nfe >= 2)
        own = state.measures[:, defect.SHARE]
        own.copy_(torch.where(line, (own * 4).floor() / 4, 0.0))
    state.refreshed.copy_(torch.rand(state.refreshed.shape, generator=g) < 0.5)
    if state.outputs is not None:
        state.outputs.copy_(torch.randn(state.outputs.shape, generator=g))
    state.model_output.copy_(outputs(state, 0, seed))
    return state


def elsewhere(state, device="cpu", cls=State):
    """A copy of a state on a device, its tables too, as a state of another class."""

    def copy(part):
        return type(part)(
            **{k: None if v is None else v.to(device, copy=True) for k, v in vars(part).items()}
        )

    tables = {
        name: value.to(device, copy=True)
        for name, value in vars(state.tables).items()
        if isinstance(value, torch.Tensor)
    }
    return cls(dataclasses.replace(state.tables, **tables), copy(state.inputs), copy(state.buffers))


def tensors(state):
    """{name: tensor} of what is given, tables included."""
    return {field.name: tensor for field, tensor in fields.tensors(state.arguments())}


def ruled(state, **changed):
    """The state, with other integers in its rule."""
    state.tables = dataclasses.replace(state.tables, rule=state.rule._replace(**changed))
    return state


def pick(state, b):
    """A state of sample b alone, on tables of the same values."""
    picked, batch = state.clone(), state.latents.shape[1]
    for field in fields.FIELDS:
        value = getattr(state, field.name)
        if field.part == fields.TABLE or value is None:
            continue
        if "B" in field.shape:
            value = value.narrow(field.shape.index("B"), b, 1)
        else:
            value = value[b::batch]
        setattr(picked, field.name, value.clone())
    return picked


def start_of(state, b, tables):
    """A start of sample b of a state at its first step, under tables of the same values."""
    inputs = {
        name: value if value is None else value[:, b : b + 1] if name == "noise" else value[b, None]
        for name, value in vars(state.inputs).items()
    }
    guided = len(state.model_input) > state.latents.shape[1]
    x = state.latents[0, b, None].clone()
    return Start(tables, x, Inputs(**inputs), guided, state.model_input.dtype)


def fence(state, shift=0):
    """Puts every written buffer between sentinels, `shift` elements on; returns their check.

    A workspace, which must stand on 16 bytes, is shifted by nothing.
    """
    fences = []
    for field in fields.FIELDS:
        value = getattr(state, field.name)
        if not field.written or value is None:
            continue
        # Bytes of 77: no number that an op writes, of whatever dtype.
        size, room = value.element_size(), 32 + (shift if field.name != "workspace" else 0)
        whole = torch.full(
            ((value.numel() + 2 * room) * size,), 77, dtype=torch.uint8, device=value.device
        )
        inside = whole.view(value.dtype)[room : room + value.numel()].view(value.shape)
        inside.copy_(value)
        setattr(state, field.name, inside)
        fences.append((field.name, whole[: room * size], whole[-room * size :]))

    def check():
        for name, head, tail in fences:
            assert bool((head == 77).all()) and bool((tail == 77).all()), name

    return check


def assert_same(one, other, but=(), what="", rtol=1e-5):
    """Bit for bit the same, but for `but`, workspaces and slots of the ring that no step reads.

    but: names that may differ by `rtol`: sums that were added in another order.
    """
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() - {"workspace"} == theirs.keys() - {"workspace"}, what
    for name, value in ours.items():
        if name == "workspace":
            continue
        wanted = theirs[name]
        if name == "latents":
            value, wanted = live(one), live(other)
        value, wanted = value.cpu(), wanted.cpu()
        if name in but:
            close = torch.allclose(value, wanted, rtol=rtol, atol=1e-8, equal_nan=True)
            assert close, (what, name, value, wanted)
        else:
            assert torch.equal(value.nan_to_num(7), wanted.nan_to_num(7)), (what, name)


def together(*works):
    """Does every work in a thread of its own; raises the first failure."""
    failures = []

    def run(work):
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def outputs(state, tick, seed=0):
    """A smooth network stand-in: differs by sample and step, so that decisions differ too."""
    g = torch.Generator().manual_seed(seed * 1000 + tick)
    x = state.model_input.cpu().double()
    rows = torch.arange(len(x), dtype=torch.float64)[:, None]
    rough = 0.02 * rows * torch.randn(x.shape, generator=g, dtype=torch.float64)
    return (torch.tanh(x) + rough).to(state.model_output)


def live(state):
    """[., B, N]: the latents that a step from here on reads: what an advance must have written."""
    needed, stages = criteria.of(state.rule.criterion).sums, state.rule.stages
    read = 3 * stages if "third" in needed else stages if "first" in needed else 1
    batch, back = torch.arange(state.latents.shape[1]), torch.arange(read)[:, None]
    return state.latents[(state.index.long().cpu() - back) % len(state.latents), batch]


def update_bound(state, fresh):
    """[B, N]: bound on |x_next - exact| for float32 arithmetic from the same float32 inputs.

    x_next is a sum of products; each term passes through a number of roundings, and the error is at
    most that number times EPS times the sum of the terms' absolute values. Without a fill it is
    K + 7 at most (guidance 3, h 2, product 1, additions K + 1). A filled step has h = ps x +
    qs (f_0 E_0 + f_1 E_1 + f_2 E_2): product 1, additions 2, qs 1, addition 1, which is no more. A
    repaired refresh adds qs (r_0 e + r_1 E_0 + r_2 E_1) with e = u x + w m to h: guidance 3,
    product and addition 2, product 1, additions 2, qs 1, addition 1, then C and the sum K + 2,
    which is K + 12. One more covers the second order.
    """
    batch = state.latents.shape[1]
    row = state.rows[state.index.clamp(max=len(state.rows) - 1).long()].double().abs()
    p, q, A, S, _, _, u, w, ps, qs = (row[:, k, None] for k in range(SCALARS))
    C = row[:, SCALARS:]
    m = state.model_output.double().abs()
    if len(m) == 2 * batch:
        g = state.guidance_scale.double().abs()[:, None]
        m = m[:batch] + g * (m[batch:] + m[:batch])
    here = state.index.long() % state.latents.shape[0]
    x = state.latents[here, torch.arange(batch)].double().abs()
    h, roundings = p * x + q * m, C.shape[1] + 8
    if state.outputs is not None:
        weights, old = kept(state)
        f, r, roundings = weights[:, :3].abs(), weights[:, 3:6].abs(), C.shape[1] + 13
        filled = ps * x + qs * torch.einsum("bk,kbn->bn", f, old.abs())
        e = u * x + w * m
        h = h + qs * (r[:, :1] * e + r[:, 1:2] * old[0].abs() + r[:, 2:] * old[1].abs())
        h = torch.where(((state.run == 0) & fresh)[:, None], h, filled)
    total = A * x + C[:, :1] * h
    if C.shape[1] > 1:
        total += C[:, 1:].sum(1, keepdim=True) * state.history.double().nan_to_num().abs().amax(0)
    # Box-Muller in float32: |z| < 6. Its angle, below 2 pi, is off by up to 2 EPS relative, its
    # cosine so by 13 EPS, and radius and product by 4 EPS more.
    total += 6 * S
    return (roundings * total + 17 * 6 * S) * EPS


def kept(state):
    """The weights [B, 8] of every sample's step and its outputs [3, B, N], newest first."""
    index, _, nfe, last_call, call_before = state.progress.long()
    size, batch = state.weights.shape[1], torch.arange(state.latents.shape[1])
    gap = (index - last_call).clamp(1, size) - 1
    previous = (last_call - call_before).clamp(1, size) - 1
    weights = state.weights[index.clamp(max=len(state.rows) - 1), gap, previous].double()
    old = [state.outputs[(nfe - 1 - k) % OUTPUTS, batch].double() for k in range(OUTPUTS)]
    there = [(nfe > k)[:, None] for k in range(OUTPUTS)]
    return weights, torch.stack(
        [torch.where(t, e, 0.0).nan_to_num() for t, e in zip(there, old, strict=True)]
    )


def share(state):
    """[B] float64: of its defect, that a refresh leaves out of what it keeps."""
    if criteria.NAME[state.rule.criterion] != "defect":
        return torch.zeros(state.latents.shape[1], dtype=torch.float64)
    ends = (state.index + 1) % state.rule.stages == 0
    return torch.where(ends, state.measures[:, defect.SHARE], 0.0)


def ddim(steps):
    """DDIM on a cosine schedule, written out: a solver under which smooth networks may skip."""
    angle = torch.linspace(1.5, 0.05, steps + 1, dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    zeros, ones = torch.zeros(steps, dtype=torch.float64), torch.ones(steps, dtype=torch.float64)
    A = alpha[1:] / alpha[:-1]
    return SolverTable(
        p=zeros,
        q=ones,
        A=A,
        S=zeros,
        C=(sigma[1:] - A * sigma[:-1])[:, None],
        input_scale=ones,
        timesteps=torch.linspace(999, 1, steps).round().long(),
        init_noise_sigma=1.0,
        start=(float(alpha[0]), float(sigma[0])),
        stages=1,
        name="DDIM",
        levels=NoiseLevels(alpha, sigma, zeros, ones, "epsilon"),
    )
