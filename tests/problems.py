"""Problems for the ops: random tables and states, and the bound their results must meet."""

import torch

from adaptive_kernels.config import AdaptiveConfig
from adaptive_kernels.schedule import SolverTable
from adaptive_kernels.state import State

EPS = 2.0**-24  # unit roundoff of float32


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
    )


def state(solver, batch, elements, config=None, guided=False, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(batch, elements, generator=g)
    scale = torch.rand(batch, generator=g) * 4 if guided else None
    made = State.begin(solver, x, config or AdaptiveConfig(), guidance_scale=scale, dtype=dtype)
    # Whatever an op must not read is NaN.
    made.latents[1:] = torch.nan
    made.history.fill_(torch.nan)
    return made


def clone(original):
    values = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in vars(original).items()
    }
    return State(**values)


def outputs(of, tick, seed=0):
    """A smooth network stand-in: differs by sample and step, so that decisions differ too."""
    g = torch.Generator().manual_seed(seed * 1000 + tick)
    x = of.model_input.double()
    rows = torch.arange(len(x), dtype=torch.float64)[:, None]
    rough = 0.02 * rows * torch.randn(x.shape, generator=g, dtype=torch.float64)
    return (torch.tanh(x) + rough).to(of.model_output.dtype)


def update_bound(solver_rows, of, model_output):
    """[B, N]: bound on |x_next - exact| for float32 arithmetic from the same float32 inputs.

    x_next is a sum of products; each term passes through at most 4 + K roundings (guidance 3,
    h 2, product 1, additions K + 1), so the error is at most (K + 8) EPS times the sum of the
    terms' absolute values.
    """
    batch = of.latents.shape[1]
    row = solver_rows[of.index.clamp(max=len(solver_rows) - 1).long()].double().abs()
    p, q, A, S = (row[:, k, None] for k in range(4))
    C = row[:, 6:]
    m = model_output.double().abs()
    if len(m) == 2 * batch:
        g = of.guidance_scale.double().abs()[:, None]
        m = m[:batch] + g * (m[batch:] + m[:batch])
    here = of.index.long() % of.latents.shape[0]
    x = of.latents[here, torch.arange(batch)].double().abs()
    total = A * x + C[:, :1] * (p * x + q * m)
    total += sum(
        C[:, k, None] * of.history[:, :, :].double().nan_to_num().abs().amax(0)
        for k in range(1, C.shape[1])
    )
    # Box-Muller in float32: |z| < 6. Its angle, below 2 pi, is off by up to 2 EPS relative, its
    # cosine so by 13 EPS, and radius and product by 4 EPS more.
    total += 6 * S
    return ((C.shape[1] + 8) * total + 17 * 6 * S) * EPS
