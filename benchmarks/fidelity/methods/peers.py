"""Published rules for skipping network calls, on the guided model output and per sample.

Where their formulas are written for eps and a variance-preserving process, the latents are taken
to its coordinates, x / hypot(alpha, sigma), and the output to eps or x0 through the table's noise
levels. Windows given for 50 steps are scaled with T / 50 and rounded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..method import Method
from ..problem import Problem
from . import loop
from .ours import periods


class Zeus(loop.SkipRule):
    """A fixed pattern of skips with an extrapolated output.

    After step k of 50, with period r (theirs: 3), step k + 1 is skipped if

        10 <= k < 24  and  k mod r != r - 1:   m_{k+1} = 2 m_k - m_{k-1} at the first, third, ..
                                               skip of a run, m_k at the second, fourth, ..
        24 <= k < 45  and  k mod 2r != 0:      x0 = the parabola through the last three x0 kept,
                                               those of the steps 1 mod 2r

    Filled outputs count as m_k like computed ones. No run is longer than 2r, which is their limit.

    Source: ZEUS, arXiv 2604.01552, with the settings of its released evaluation (24 calls of 50).
    """

    def __init__(self, period: float) -> None:
        self.period = int(period)

    @staticmethod
    def pattern(steps: int, period: int) -> list[bool]:
        first, middle, last = loop.scaled(steps, 10, 24, 45)
        calls = [True]
        for k in range(steps - 1):
            skip = first <= k < middle and k % period != period - 1
            skip |= middle <= k < last and k % (2 * period) != 0
            calls.append(not skip)
        return calls

    def calls(self, i: int) -> Tensor:
        return self.everyone(self.pattern(self.trace.steps, self.period)[i])

    def fill(self, i: int) -> Tensor:
        trace = self.trace
        if i - 1 >= loop.scaled(trace.steps, 24)[0]:
            return trace.output(i, trace.lagrange_x0(i, _kept(i, 2 * self.period, 3)))
        nth = i - max(j for j in range(i) if trace.computed[j, 0])
        return 2 * trace.m[i - 1] - trace.m[i - 2] if nth % 2 else trace.m[i - 1]


class Sada(loop.SkipRule):
    """The sign of a momentum says who skips, then a fixed pattern.

    With N steps, beta_k of the training schedule, e the last computed eps and the latents in the
    coordinates of the variance-preserving process,

        f_k  = -beta_k N x_k / 2 + beta_k N e / (2 sigma_k)
        xhat = x_k - (5/8 f_k + 3/4 f_{k-1} - 3/8 f_{k-2}) / N

    After step k of 50, with interval n (theirs: 4), step k + 1 is skipped if

        10 <= k < 24  and  mean[(x_{k+1} - xhat)(f_k - 2 f_{k-1} + f_{k-2})] <= 0:
                                          x0 = (xhat - sigma_{k+1} e) / alpha_{k+1}
        24 <= k < 47  and  k mod n != 0:  x0 = the cubic through the last four x0 kept, those of
                                          the steps 1 mod n

    and no run is longer than n. A scheduler without betas, as of flow matching, is given those of
    1000 training steps, -2 ln(alpha_k / alpha_{k+1}) N / 1000.

    Source: SADA, arXiv 2507.17135, in the constants of its released code; token pruning left out.
    """

    def __init__(self, interval: float) -> None:
        self.interval = int(interval)

    def begin(self, problem: Problem, trace: loop.Trace) -> None:
        super().begin(problem, trace)
        betas = getattr(problem.scheduler(), "betas", None)
        if betas is not None:
            self.betas = betas[trace.table.timesteps.long()].tolist()
        else:
            alphas = [max(trace.vp_level(i)[0], 1e-4) for i in range(trace.steps + 1)]
            self.betas = [
                -2 * math.log(now / ahead) * trace.steps / 1000
                for now, ahead in itertools.pairwise(alphas)
            ]
        self.slopes: list[Tensor] = []
        self.skipped = torch.zeros(trace.computed.shape[1])

    def calls(self, i: int) -> Tensor:
        if i == 0:
            return self.everyone(True)
        trace, k, n = self.trace, i - 1, self.trace.steps
        fresh = trace.computed[k, :, None]
        self.eps = trace.eps(k) if k == 0 else torch.where(fresh, trace.eps(k), self.eps)
        _, sigma, r = trace.vp_level(k)
        x = trace.x[k] / r
        self.slopes.append(self.betas[k] * n / 2 * (self.eps / sigma - x))
        first, middle, last = loop.scaled(n, 10, 24, 47)
        skip = self.everyone(middle <= k < last and k % self.interval != 0)
        if k >= 2:
            f0, f1, f2 = self.slopes[:-4:-1]
            self.ahead = x - (0.625 * f0 + 0.75 * f1 - 0.375 * f2) / n
            momentum = (trace.x[i] / trace.vp_level(i)[2] - self.ahead) * (f0 - 2 * f1 + f2)
            if first <= k < middle:
                skip = momentum.mean(1) <= 0
        skip &= self.skipped < self.interval
        self.skipped = torch.where(skip, self.skipped + 1, 0)
        return ~skip

    def fill(self, i: int) -> Tensor:
        trace = self.trace
        if i - 1 >= loop.scaled(trace.steps, 24)[0]:
            return trace.output(i, trace.lagrange_x0(i, _kept(i, self.interval, 4)))
        alpha, sigma, _ = trace.vp_level(i)
        return trace.output(i, (self.ahead - sigma * self.eps) / max(alpha, loop.SMALLEST))


class EasyCache(loop.SkipRule):
    """The change of the network input, summed up, in units of what it did to the output.

        at a call    K = mean|out - out_last| / mean|in - in_last|, last the call before
        each step    acc += K mean|in_i - in_{i-1}| / mean|out_last|;  skip while acc < threshold
                     the first five steps and the last one call; a call sets acc = 0
        fill         out = in_i + (out_last - in_last)

    Source: EasyCache, arXiv 2507.02860; threshold 0.025 for HunyuanVideo.
    """

    forced = 5

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def begin(self, problem: Problem, trace: loop.Trace) -> None:
        super().begin(problem, trace)
        self.rate = self.total = torch.zeros(trace.computed.shape[1])

    def calls(self, i: int) -> Tensor:
        if i:
            self._learn(i - 1)
        if i < self.forced or i == self.trace.steps - 1:
            self.total = torch.zeros_like(self.total)
            return self.everyone(True)
        change = _mean(self.trace.network_input(i) - self.trace.network_input(i - 1))
        self.total = self.total + self.rate * change / _mean(self.output)
        if self.threshold > 0:
            self.trace.score[i] = self.total.double() / self.threshold
        calls = ~(self.total < self.threshold)
        self.total = torch.where(calls, 0, self.total)
        return calls

    def fill(self, i: int) -> Tensor:
        return self.trace.network_input(i) + (self.output - self.input)

    def _learn(self, i: int) -> None:
        fresh, output, given = self.trace.computed[i], self.trace.m[i], self.trace.network_input(i)
        if i:
            rate = _mean(output - self.output) / _mean(given - self.input)
            self.rate = torch.where(fresh, rate, self.rate)
            output = torch.where(fresh[:, None], output, self.output)
            given = torch.where(fresh[:, None], given, self.input)
        self.output, self.input = output, given


class TaylorSeer(loop.SkipRule):
    """One call in n after the first three, and a Taylor series of the output between them.

        D_0 = out,  D_{j+1} = (D_j - D_j of the call before) / (steps between the two calls)
        fill        sum_{j <= order} D_j d^j / j!,  d steps after the call

    Source: TaylorSeer, arXiv 2503.06923, on the final output.
    """

    forced = 3

    def __init__(self, interval: float, order: int) -> None:
        self.interval, self.order = int(interval), order
        self.at, self.factors = 0, []

    @classmethod
    def pattern(cls, i: int, interval: int) -> bool:
        return i < cls.forced or (i - cls.forced + 1) % interval == 0

    def calls(self, i: int) -> Tensor:
        if i and self.pattern(i - 1, self.interval):
            new = [self.trace.m[i - 1]]
            for old in self.factors[: self.order]:
                new.append((new[-1] - old) / (i - 1 - self.at))
            self.at, self.factors = i - 1, new
        return self.everyone(self.pattern(i, self.interval))

    def fill(self, i: int) -> Tensor:
        d = i - self.at
        return sum(f * (d**j / math.factorial(j)) for j, f in enumerate(self.factors))


def _kept(i: int, interval: int, count: int) -> list[int]:
    """The last steps before i of those that are 1 mod interval."""
    return list(range(1, i, interval))[-count:]


def _mean(x: Tensor) -> Tensor:
    return x.abs().mean(1)


def _method(name: str, rule: Callable[[float], loop.SkipRule], **how) -> Method:
    return Method(name, lambda x: lambda problem, batch: loop.run(problem, batch, rule(x)), **how)


def _zeus_settings(problem: Problem, budget: float) -> list[float]:
    return loop.around(lambda r: sum(Zeus.pattern(problem.steps, r)), (2, 3), budget)


def _taylor_settings(problem: Problem, budget: float) -> list[float]:
    def nfe(interval: int) -> int:
        return sum(TaylorSeer.pattern(i, interval) for i in range(problem.steps))

    return loop.around(nfe, range(2, max(3, problem.steps // 2)), budget)


METHODS = [
    _method("zeus", Zeus, settings=_zeus_settings),
    _method("sada", Sada, settings=lambda problem, budget: [4.0]),
    _method("easycache", EasyCache, knob=(1e-3, 1.0)),
    _method("taylorseer", lambda n: TaylorSeer(n, order=1), settings=_taylor_settings),
    _method("taylorseer_2", lambda n: TaylorSeer(n, order=2), settings=_taylor_settings),
    _method("skip_update", loop.SkipUpdate, settings=periods),
]
