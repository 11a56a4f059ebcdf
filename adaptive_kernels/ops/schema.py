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
    defect          rms(e - f_0 E_0 - f_1 E_1 - f_2 E_2) * |spread|, at a refresh

A sample with run = 0 waits for the network; with `fresh` its model output has just been written
and is taken. What each tensor is, with shape and dtype, is the table of `ops.fields`
(docs/ops.md). After the tensors come

    criterion, max_skip, warmup, stages, batch_wide: `AdaptiveConfig.rule`; under `plan`, max_skip
        is at least its longest run of skipped steps; batch_wide: one decision from the sums over
        all samples, which must stand at one step.
    fresh: whether waiting samples take the model output; of `step` alone.
    condition: handle of the conditional node of a CUDA graph whose value the launch sets: 1 while
        some sample has steps to go, then 0. CUDA alone.

Raises: RuntimeError naming the argument (shape, dtype, device, contiguity, shared memory). Values
    lie on the device: only the CPU's op raises for negative counters or refreshes that lie ahead
    (the others leave such a sample alone) and for samples at different steps that decide together
    (undefined on a GPU).
Source: design of AdaptiveDiffusion, arXiv 2410.09873, section 3.

Ops write into what they get and return nothing; torch.compile sees one opaque call. `reference` is
their default implementation (CompositeExplicitAutograd); `dispatch` overrides it per device.
"""

import torch
from torch import Tensor

from . import fields, reference

OPS = tuple(fields.MORE)
LIBRARY = torch.library.Library("adaptive_kernels", "DEF")
for _name in OPS:
    LIBRARY.define(fields.schema(_name))


def _fake(*arguments: object, **named: object) -> None:
    """What the ops do with tensors without values: nothing, if all of them lie on one device.

    One meta tensor among others brings a call here too, and must not pass for a step.
    """
    given = dict(zip(fields.NAMES, arguments, strict=False)) | named
    device = given["latents"].device
    for name, value in given.items():
        if isinstance(value, Tensor) and value.device != device:
            raise RuntimeError(f"{name} must be on {device} as latents is, got {value.device}")


for _name in OPS:
    LIBRARY.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"adaptive_kernels::{_name}", _fake, lib=LIBRARY)

step = torch.ops.adaptive_kernels.step.default
advance = torch.ops.adaptive_kernels.advance.default
