"""Which steps of a plan should call the network: masks tried on recordings, without the network.

The difference d of a plan's latents from the recorded ones follows the table's own recurrence,

    d_{i+1} = A_i d_i + sum_k C_ik dh_{i-k},   dh_i = ps_i d_i + qs_i (used_i - e_i)

and starts at zero, so it is a combination of the recorded outputs e_0 .. e_{T-1}: T numbers per
step, and their Gram matrices say how long it is in every sample. What the network would answer at
the shifted latents is taken as e_i + gamma_i d_i / sigma_i, one number per step read off a few real
runs; on the shipped model that explains 85 to 98 % of the answer in the first half of a run.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..rules.fills import Coordinates
from ..solvers.table import SolverTable
from .fit import RIDGE, Fit
from .record import Recording

MOVES = (-3, -2, -1, 1, 2, 3)


def response(table: SolverTable, recording: Recording, fits: list[Fit]) -> Tensor:
    """[T] float64: gamma, the slope of (output - recorded output) over (d / sigma), from real runs.

    Steps that no run called, or called where nothing was shifted, take the nearest known value.
    """
    steps = table.num_steps
    top, bottom = torch.zeros(2, steps, dtype=torch.float64, device="cpu")
    for fit in fits:
        for i in range(1, steps):
            if fit.plan.refresh[i]:
                shift = fit.error[i].double() / table.levels.sigma[i].item()
                answer = fit.outputs[i].double() - recording.outputs[i].double()
                top[i] += (answer * shift).sum().item()
                bottom[i] += shift.square().sum().item()
    known = (bottom > 0).nonzero()[:, 0]
    if not len(known):
        return torch.zeros_like(top)
    nearest = (torch.arange(steps, device="cpu")[:, None] - known).abs().argmin(1)
    return (top[known] / bottom[known])[nearest]


class Search:
    """Masks of one solver, tried on the recordings of B samples.

    gamma: [T] float64 of `response`.
    """

    def __init__(
        self, table: SolverTable, coords: Coordinates, recording: Recording, gamma: Tensor
    ) -> None:
        self.table, self.coords, self.gamma = table, coords, gamma
        self.steps = table.num_steps
        self.wholes = -(-self.steps // table.stages)
        outputs = recording.outputs
        self.elements = outputs.shape[2]
        # [B, T, T]: one sample after the other, since a video's latents are large.
        self.gram = torch.stack([_gram(outputs[:, b]) for b in range(outputs.shape[1])]).cpu()
        self.total = self.gram.sum(0)

    def rows(self, mask: Tensor) -> Tensor:
        """[..., T] of a mask [..., whole steps]."""
        return mask.repeat_interleave(self.table.stages, dim=-1)[..., : self.steps]

    def decibels(self, masks: Tensor) -> Tensor:  # [M, whole steps] bool -> [M] float64
        """The predicted mean PSNR of each mask, in dB for a data range of 2."""
        final = self._final(self.rows(masks))
        error = torch.einsum("mi,bij,mj->mb", final, self.gram, final) / self.elements
        return (10 * torch.log10(4 / error.clamp(min=1e-12))).mean(1)

    def _final(self, masks: Tensor) -> Tensor:  # [M, T] bool -> [M, T] float64
        """Coefficients of the final difference in the recorded outputs."""
        table, coords, count = self.table, self.coords, len(masks)
        eye = torch.eye(self.steps, dtype=torch.float64, device="cpu")
        d = eye.new_zeros(count, self.steps)
        outputs = eye.new_zeros(count, 3, self.steps)
        nfe = masks.new_zeros(count, dtype=torch.int64)
        dh: list[Tensor] = []
        for i in range(self.steps):
            fresh = masks[:, i]
            answer = eye[i] + self.gamma[i] / table.levels.sigma[i] * d
            pushed = torch.cat((answer[:, None], outputs[:, :2]), dim=1)
            outputs = torch.where(fresh[:, None, None], pushed, outputs)
            nfe = nfe + fresh
            remainder = (table.A[i] + table.C[i, 0] * coords.ps[i]) * d
            for k in range(1, min(table.history, i + 1)):
                remainder = remainder + table.C[i, k] * dh[-k]
            factor = table.C[i, 0] * coords.qs[i]
            if i == 0 or abs(factor) < 1e-12:  # the first output is used as it is
                output = outputs[:, 0]
            else:
                output = self._fitted(outputs, nfe, eye[i] - remainder / factor)
            miss = output - eye[i]
            dh.append(coords.ps[i] * d + coords.qs[i] * miss)
            d = remainder + factor * miss
        return d

    def _fitted(self, outputs: Tensor, nfe: Tensor, target: Tensor) -> Tensor:
        """The combination of each mask's kept outputs closest to its target, all [M, ..., T]."""
        half = outputs @ self.total
        normal, right = half @ outputs.transpose(1, 2), half @ target[:, :, None]
        exists = torch.arange(3, device=nfe.device) < nfe[:, None]
        ridge = RIDGE * normal.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
        ridge = torch.where(ridge > 0, ridge, 1.0)
        right[:, 0] += ridge
        right = torch.where(exists[:, :, None], right, 0.0)
        normal = normal + torch.diag_embed(torch.where(exists, ridge, 1.0))
        return (torch.linalg.solve(normal, right) * outputs).sum(1)

    def optima(
        self, calls: int, starts: int, tick: Callable[[], None] = lambda: None
    ) -> list[Tensor]:
        """Distinct local optima [whole steps] of `calls` calls, best first.

        The starts are even spacing, the mask left when the least missed call is dropped again and
        again, and even spacings shifted at random; a move shifts one call by up to three steps.
        """
        cpu = torch.device("cpu")
        generator = torch.Generator(cpu).manual_seed(0)
        even = torch.linspace(0, self.wholes - 1, calls, device=cpu)
        everywhere = torch.ones(self.wholes, dtype=torch.bool, device=cpu)
        decibels: dict[tuple, float] = {}
        for start in range(starts):
            if start == 1:
                mask = self.resized(everywhere, calls, tick)
            else:
                jitter = torch.randn(calls, generator=generator, device=cpu) * (start > 0)
                places = (even + jitter * self.wholes / calls / 3).round().long()
                mask = torch.zeros_like(everywhere)
                mask[places.clamp(0, self.wholes - 1)] = True
                mask[0] = True
                free = (~mask).nonzero()[:, 0]
                missing = calls - int(mask.sum())
                order = torch.randperm(len(free), generator=generator, device=cpu)
                mask[free[order[: max(missing, 0)]]] = True
                if missing < 0:
                    continue
            best, value = self._climb(mask, tick)
            decibels[tuple(best.tolist())] = value
        best_first = sorted(decibels, key=decibels.get, reverse=True)
        return [torch.tensor(mask, device=cpu) for mask in best_first]

    def moves(self, mask: Tensor) -> Tensor:
        """[M, whole steps]: the masks with one call of `mask` moved, the most promising first."""
        return self._ranked(mask)[0]

    def _ranked(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The moves of a mask and their decibels, the largest first."""
        moved = []
        for i in mask.nonzero()[1:, 0].tolist():
            for j in (i + shift for shift in MOVES):
                if 0 < j < self.wholes and not mask[j]:
                    neighbour = mask.clone()
                    neighbour[i], neighbour[j] = False, True
                    moved.append(neighbour)
        masks = torch.stack(moved) if moved else mask.new_zeros(0, len(mask))
        value, order = self.decibels(masks).sort(descending=True)
        return masks[order], value

    def resized(self, mask: Tensor, calls: int, tick: Callable[[], None] = lambda: None) -> Tensor:
        """`mask` with calls added, or dropped, one by one: the one that gains or loses most."""
        while (missing := calls - int(mask.sum())) != 0:
            places = (mask != (missing > 0)).nonzero()[:, 0]
            places = places[places > 0]
            masks = mask.repeat(len(places), 1)
            masks[torch.arange(len(places), device=mask.device), places] = missing > 0
            mask = masks[self.decibels(masks).argmax()]
            tick()
        return mask

    def _climb(self, mask: Tensor, tick: Callable[[], None]) -> tuple[Tensor, float]:
        best = self.decibels(mask[None]).item()
        while True:
            tick()
            moved, value = self._ranked(mask)
            if not len(moved) or not value[0] > best + 1e-3:
                return mask, best
            best, mask = value[0].item(), moved[0]


def _gram(outputs: Tensor) -> Tensor:  # [T, N] -> [T, T] float64
    x = outputs.double()
    return x @ x.T
