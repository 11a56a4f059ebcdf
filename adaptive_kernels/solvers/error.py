"""How far a solver ends from where its own ODE leads, told by its table alone.

On Gaussian data N(0, s^2) the best network is known, so the table's recurrence is one of scalars:

    m_i = (a_i alpha_i s^2 + b_i sigma_i) / v_i^2 * x_i,   v_i^2 = alpha_i^2 s^2 + sigma_i^2

and the ODE's own solution is x_i = v_i. A table that starts on it ends at r v_T, off by s (r - 1)
in the data's units.
"""

import torch
from torch import Tensor

from .levels import NoiseLevels

WIDTHS = 25  # s, from .01 to 1 evenly in the logarithm


def gaussian_error(p: Tensor, q: Tensor, A: Tensor, C: Tensor, levels: NoiseLevels) -> float:
    """E = sqrt(mean_s (s (r_s - 1))^2), in units of the data.

    Args:
        p, q, A: [T] float64. C: [T, K] float64. levels: those of the T rows.
    """
    s = torch.logspace(-2, 0, WIDTHS, dtype=torch.float64, device="cpu")
    alpha, sigma = levels.alpha[:, None], levels.sigma[:, None]
    exact = torch.sqrt(alpha.square() * s.square() + sigma.square())
    predicted = levels.a[:, None] * alpha[:-1] * s.square() + levels.b[:, None] * sigma[:-1]
    gain = p[:, None] + q[:, None] * predicted / exact[:-1].square()
    x, kept = exact[0], []
    for i in range(len(p)):
        kept = [gain[i] * x, *kept[: C.shape[1] - 1]]
        x = A[i] * x + sum(C[i, k] * h for k, h in enumerate(kept))
    return (s * (x / exact[-1] - 1)).square().mean().sqrt().item()
