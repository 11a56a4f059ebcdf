"""The same arithmetic as one function under torch.compile, its decisions kept tensors.

Nothing waits: a step that a sample does not take is computed and masked. Written to be fast: it
reads and writes tensors that stand still, since making new ones of this size costs as much again
(and a CUDA graph needs no copies of them), a table's zeros are left out, and `defect` is one sum.
Samples decide alone, buffers are [B, N] and numbers [B], or all as one, flat and [], which is the
fastest on a CPU at large sizes: the compiler can sum along with the update.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .start import Result, Start


class Tensors(NamedTuple):
    """What a function reads and writes; None where its criterion needs none."""

    x_next: Tensor  # [(B,) N] float32, written
    model_input: Tensor  # [1 or 2, (B,) N] network dtype, written
    x_1_next: Tensor | None  # [(B,) N] float32, written: the latents before x_next
    x_2_next: Tensor | None
    own: Tensor | None  # [(B,) N] float32, written: the output a refresh keeps
    x: Tensor  # [(B,) N] float32
    x_1: Tensor | None
    x_2: Tensor | None
    e_0: Tensor | None  # [(B,) N] float32: outputs kept
    e_1: Tensor | None
    output: Tensor | None  # [1 or 2, (B,) N] network dtype
    rows: Tensor  # [steps, 10 + K] float32
    entries: Tensor | None  # [steps, 7] float32
    costs: Tensor | None  # [Q] float32
    scale: Tensor | None  # [B] or [] float32
    threshold: Tensor  # [B] or [] float32
    norm: Tensor | None  # [B] or [] float32: of the last difference, or the last defect
    norm_1: Tensor | None  # [B] or [] float32: of the difference before


def guide(t: Tensors) -> Tensor:
    m = t.output[0].float()
    return m if len(t.output) == 1 else m + t.scale[..., None] * (t.output[1].float() - m)


def update(row: Tensor, x: Tensor, m: Tensor) -> Tensor:
    return row[2] * x + (row[10] * row[1]) * m


def write(t: Tensors, x: Tensor, steps: int) -> None:
    t.x_next.copy_(x)
    t.model_input.copy_(t.rows[steps - 1, 4] * x)


def differences(start: Start) -> Callable:
    """A refresh under a difference rule, and the skipped steps that may follow it."""
    squares, steps, max_skip = start.criterion == "third_order", start.steps, start.max_skip

    def size(x: Tensor) -> Tensor:
        return x.square().sum(-1).sqrt() if squares else x.abs().mean(-1)

    def function(t: Tensors) -> tuple[Tensor | int, Tensor, Tensor]:
        m, x, x_1, x_2, norm, norm_1 = guide(t), t.x, t.x_1, t.x_2, t.norm, t.norm_1
        going, done = torch.ones_like(norm, dtype=torch.bool), torch.zeros_like(norm)
        for k in range(steps):
            new = update(t.rows[k], x, m)
            first, right = size(new - x), t.threshold * norm
            if squares:
                left = size((new - x_2) - 3 * (x - x_1))
                within = left < right
            else:
                left = ((first + norm_1) / 2 - norm).abs()
                within = left <= right
            if k == 0:
                score = left / right
                x_2, x_1, x = x_1, x, new
            else:
                mask = going[..., None]
                x_2, x_1, x = (torch.where(mask, a, b) for a, b in ((x_1, x_2), (x, x_1), (new, x)))
            # Of a sample that has stopped nothing more is asked.
            norm_1, norm = norm, first
            done, going = done + going, going & within
        if steps > 1:
            t.x_1_next.copy_(x_1)
            t.x_2_next.copy_(x_2)
        write(t, x, steps)
        # Who has come to the end of the longest run calls the network in any case.
        refresh = torch.ones_like(going) if steps > max_skip else ~going
        return (done if steps > 1 else 1), refresh, score

    return function


def defect(start: Start) -> Callable:
    """A refresh or a skipped step under `defect`, and the skipped steps that may follow it."""
    fresh, steps, skips, max_skip = start.fresh, start.steps, start.skips, start.max_skip

    def function(t: Tensors) -> tuple[Tensor | int, Tensor, Tensor]:
        newest, older = t.e_0, t.e_1
        output = t.entries[0, 0] * newest + t.entries[0, 1] * older
        if fresh:
            m = guide(t)
            t.own.copy_(m)
            difference = m - output
            size = difference.square().mean(-1).sqrt() * t.entries[0, 6]
            output = m + t.entries[0, 3] * difference
            newest, older = m, newest
        else:
            size = t.norm
        x = update(t.rows[0], t.x, output)
        going, done = torch.ones_like(size, dtype=torch.bool), torch.ones_like(size)
        for k in range(1, steps):
            going = going & (size * t.costs[skips + k - 1] <= t.threshold)
            new = update(t.rows[k], x, t.entries[k, 0] * newest + t.entries[k, 1] * older)
            x, done = torch.where(going[..., None], new, x), done + going
        write(t, x, steps)
        # The longest run has an end, whatever comes after it would cost.
        refresh, last = torch.ones_like(going), skips + steps - 1
        if last < max_skip:
            refresh = ~(going & (size * t.costs[last] <= t.threshold))
        return (done if steps > 1 else 1), refresh, size * t.costs[skips] / t.threshold

    return function


def tensors(start: Start, batch_wide: bool) -> Tensors:
    """The buffers of a start, the samples as one or each alone."""
    shape = (-1,) if batch_wide else start.latents[0].shape
    x, x_1, x_2 = (one.clone().view(shape) for one in start.latents)
    halves = 1 if start.guidance_scale is None else 2
    filled, runs = start.criterion == "defect", start.steps > 1
    reads = start.criterion == "third_order" or (runs and not filled)

    def scalars(value: float) -> Tensor:
        return torch.full(x.shape[:-1], value, device=x.device)

    sums = start.measures
    if batch_wide:
        sums = sums[0] if filled else sums.sum(0)
    if start.criterion == "third_order":
        sums = sums.sqrt()
    elif start.criterion == "released":
        sums = sums / x.shape[-1]
    norm, norm_1 = (sums[..., k].float().clone() for k in (0, 1))
    e_0, e_1 = (e.clone().view(shape) for e in start.kept) if filled else (None, None)
    return Tensors(
        x_next=torch.empty_like(x),
        model_input=torch.empty(halves, *x.shape, dtype=start.dtype, device=x.device),
        x_1_next=None if filled or not runs else torch.empty_like(x),
        x_2_next=None if filled or not runs else torch.empty_like(x),
        own=torch.empty_like(x) if filled and start.fresh else None,
        x=x,
        x_1=x_1 if reads else None,
        x_2=x_2 if reads else None,
        e_0=e_0,
        e_1=e_1,
        output=start.model_output.view(halves, *x.shape) if start.fresh else None,
        rows=start.rows.clone(),
        entries=start.weights.clone() if filled else None,
        costs=start.costs.clone() if filled else None,
        scale=scalars(start.guidance_scale) if halves == 2 and start.fresh else None,
        threshold=scalars(start.threshold),
        norm=None if filled and start.fresh else norm,
        norm_1=norm_1 if start.criterion == "released" else None,
    )


class Compiled:
    """Calls from several starts, one compiled function for all of them.

    Args:
        batch_wide: whether all samples decide as one.
        mode, compile: of torch.compile, and what stands in for it.
    """

    def __init__(
        self,
        starts: list[Start],
        batch_wide: bool,
        mode: str | None = None,
        compile: Callable = torch.compile,
    ):
        # The cache of compiled code is per code object and small.
        torch.compiler.reset()
        self.starts, self.batch_wide = starts, batch_wide
        make = defect if starts[0].criterion == "defect" else differences
        body, self.tensors = make(starts[0]), [tensors(start, batch_wide) for start in starts]
        names = [name for name in Tensors._fields if getattr(self.tensors[0], name) is not None]
        blank = dict.fromkeys(Tensors._fields)

        # A call checks every argument: none that is not read, and no structure around them.
        def function(*values):
            return body(Tensors(**{**blank, **dict(zip(names, values, strict=True))}))

        self.function = compile(function, fullgraph=True, dynamic=False, mode=mode)
        self.arguments = [[getattr(t, name) for name in names] for t in self.tensors]
        for tensor in (t for arguments in self.arguments for t in arguments):
            torch._dynamo.mark_static_address(tensor, guard=False)

    def __call__(self, k: int = 0) -> None:
        self.left = self.function(*self.arguments[k % len(self.arguments)])

    def result(self) -> Result:
        """After a call from the first start."""
        t, rows = self.tensors[0], self.starts[0].latents[0].shape
        done, refresh, score = self.left
        kept = None if t.own is None else t.own.view(rows)
        model_input = t.model_input.view(-1, rows[1])
        return Result(t.x_next.view(rows), model_input, done, refresh, score, self.batch_wide, kept)
