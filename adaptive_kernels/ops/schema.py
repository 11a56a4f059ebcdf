"""The torch ops `adaptive_kernels::step` and `adaptive_kernels::advance`.

`step(..., fresh)` is one solver update of every sample that does not wait for the network, and its
decision; `advance(...)` takes fresh model outputs and brings every sample to its next refresh or to
its end, as `step(fresh=True)` and then `step(fresh=False)` until every sample waits would.

    h_i     = p_i x_i + q_i m_i,   m = mu + guidance_scale (mc - mu)
    x_{i+1} = A_i x_i + sum_k C_{i,k} h_{i-k} + S_i z_i

With `outputs` given, e = u_i x_i + w_i m_i is what a refresh leaves in them, E_0, E_1, E_2 are the
last three of those before the step, newest first, and with the step's weights (f, r)

    skipped step    h_i = ps_i x_i + qs_i (f_0 E_0 + f_1 E_1 + f_2 E_2)
    refresh         h_i = p_i x_i + q_i m_i + qs_i (r_0 e + r_1 E_0 + r_2 E_1)
    defect          rms(e - f_0 E_0 - f_1 E_1 - f_2 E_2) * spread, at a refresh

A sample with run = 0 waits for the network; with `fresh` its model output has just been written
and is taken. T steps, B samples of N elements, K history terms, ring depth R >= 3 stages + 1.

Args:
    latents: [R, B, N] float32, written; the latents of step i are in slot i mod R, those of a
        sample's own step and of as many before it as its criterion reads. Other slots hold
        anything: `advance` may leave out what no later step reads.
    history: [K - 1, B, N] float32, written; h_i is in slot i mod (K - 1).
    model_input: [B or 2B, N] float32, float16 or bfloat16, written: c_{i+1} x_{i+1}.
    timestep: [B or 2B] float32 or int64, written: t_{i+1} in the scheduler's units.
    progress: [5, B] int32, written: index (steps done), run (steps since the refresh), nfe, step
        of the last refresh, step of the refresh before it.
    norms: [B, 2] float64, written: sums over the first difference of the last two whole steps;
        under the criterion `defect`, the last defect and nothing.
    refreshed: [T, B] bool, written: whether step i was done on a fresh output.
    score: [T, B] float32, written: left over right side of the criterion that decided step i.
    outputs: [3, B, N] float32, written: e of refresh number r is in slot r mod 3; None: an output
        is used again as it is.
    workspace: `workspace_shape` float64, written: zeros before the first call on it and between
        calls what the last one left. Anything else, as two calls at a time on one workspace, makes
        a launch wrong or endless, and nothing reports it. Needed on a GPU; None on the CPU.
    model_output: [B or 2B, N] float32, float16 or bfloat16; 2B rows: unconditional first.
    guidance_scale: [B] float32. threshold: [B] float32.
    rows: [T, 10 + K] float32, weights: [T, G, G, 7] float32 (f, r, spread by step and by the
        distances between step, last refresh and the one before), run_cost: [T, G, Q] float32
        (predicted error per unit of defect by refresh, distance to the one before and length of
        the run; under `plan` 1 where the network is called): `fills.fill_tables`.
    seed: [B] int64, the noise stream of each sample; noise: [T, B, N] float32 in its place.
    criterion, max_skip, warmup, stages: `AdaptiveConfig.rule`; under `plan`, max_skip is at least
        its longest run of skipped steps.
    batch_wide: one decision from the sums over all samples, which must stand at one step.
    fresh: whether waiting samples take the model output.
    condition: handle of the conditional node of a CUDA graph whose value the launch sets: 1 while
        some sample has steps to go, then 0. CUDA alone.

Raises: RuntimeError naming the argument (shape, dtype, device, contiguity, shared memory). Values
    lie on the device: only the CPU's op raises for negative counters or refreshes that lie ahead (a
    GPU leaves such a sample alone) and for samples at different steps that decide together
    (undefined on a GPU).
Source: design of AdaptiveDiffusion, arXiv 2410.09873, section 3.

Ops write into what they get and return nothing; torch.compile sees one opaque call. `reference` is
their default implementation (CompositeExplicitAutograd); `dispatch` overrides it per device.
"""

import torch
from torch import Tensor

from . import reference

_ARGUMENTS = """
    Tensor(a!) latents, Tensor(b!) history, Tensor(c!) model_input, Tensor(d!) timestep,
    Tensor(e!) progress, Tensor(f!) norms, Tensor(g!) refreshed, Tensor(h!) score,
    Tensor(i!)? outputs, Tensor(j!)? workspace,
    Tensor model_output, Tensor guidance_scale, Tensor threshold, Tensor rows, Tensor? weights,
    Tensor? run_cost, Tensor seed, Tensor? noise,
    int criterion, int max_skip, int warmup, int stages, bool batch_wide
"""
OPS = ("step", "advance")
LIBRARY = torch.library.Library("adaptive_kernels", "DEF")
LIBRARY.define(f"step({_ARGUMENTS}, bool fresh, int? condition=None) -> ()")
LIBRARY.define(f"advance({_ARGUMENTS}, int? condition=None) -> ()")


def _fake(*arguments: object, **named: object) -> None:
    """What the ops do with tensors without values: nothing, if all of them lie on one device.

    One meta tensor among others brings a call here too, and must not pass for a step.
    """
    names = (argument.name for argument in step._schema.arguments)
    given = dict(zip(names, arguments, strict=False)) | named
    device = given["latents"].device
    for name, value in given.items():
        if isinstance(value, Tensor) and value.device != device:
            raise RuntimeError(f"{name} must be on {device} as latents is, got {value.device}")


for _name in OPS:
    LIBRARY.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"adaptive_kernels::{_name}", _fake, lib=LIBRARY)

step = torch.ops.adaptive_kernels.step.default
advance = torch.ops.adaptive_kernels.advance.default


def workspace_shape(batch: int, elements: int) -> tuple[int, int, int]:
    """Shape of `workspace` for B samples of N elements: csrc/op/args.h."""
    return batch, 1 + max(-(-elements // 2048), 1), 16
