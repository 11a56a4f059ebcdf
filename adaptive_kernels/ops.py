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

Raises: RuntimeError naming the argument (shape, dtype, contiguity, shared memory). Values lie on
    the device: only the CPU's op raises for negative counters or refreshes that lie ahead (a GPU
    leaves such a sample alone) and for samples at different steps that decide together (undefined
    on a GPU).
Source: design of AdaptiveDiffusion, arXiv 2410.09873, section 3.

Schemas live here; `reference` is the ops' default implementation (CompositeExplicitAutograd), and
the compiled libraries override it per device, or `triton_kernels` where there is none. Ops write
into what they get and return nothing; torch.compile sees one opaque call.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from . import reference, triton_kernels
from .version import __version__

__all__ = ["advance", "info", "step"]

_ARGUMENTS = """
    Tensor(a!) latents, Tensor(b!) history, Tensor(c!) model_input, Tensor(d!) timestep,
    Tensor(e!) progress, Tensor(f!) norms, Tensor(g!) refreshed, Tensor(h!) score,
    Tensor(i!)? outputs, Tensor(j!)? workspace,
    Tensor model_output, Tensor guidance_scale, Tensor threshold, Tensor rows, Tensor? weights,
    Tensor? run_cost, Tensor seed, Tensor? noise,
    int criterion, int max_skip, int warmup, int stages, bool batch_wide
"""
_LIBRARY = torch.library.Library("adaptive_kernels", "DEF")
_LIBRARY.define(f"step({_ARGUMENTS}, bool fresh, int? condition=None) -> ()")
_LIBRARY.define(f"advance({_ARGUMENTS}, int? condition=None) -> ()")
for _name in ("step", "advance"):
    _LIBRARY.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"adaptive_kernels::{_name}", lambda *_, **__: None, lib=_LIBRARY)


def _load(name: str) -> tuple[bool, str]:
    """Loads a compiled library that stands beside this file: (loaded, why)."""
    cuda = torch.version.cuda
    if name == "_C_cuda" and cuda is None:
        return False, f"this torch is a {'ROCm' if torch.version.hip else 'CPU'} build"
    found = sorted(Path(__file__).parent.glob(f"{name}.*.so"))
    if not found:
        wanted = "a C++ compiler" if cuda is None or name == "_C" else f"nvcc of CUDA {cuda[:2]}"
        return False, f"not built: installing found no {wanted} that works"
    try:
        torch.ops.load_library(found[-1])
    except OSError as error:
        return False, f"{found[-1].name} does not load: {error}"
    return True, f"loaded {found[-1].name}"


def _portable(name: str) -> Callable[..., None]:
    """The op in Triton, or in plain torch where Triton cannot be imported."""

    def run(*arguments, **named):
        warn_if_slow(arguments[0].device.type)
        module = triton_kernels if triton_kernels.available()[0] else reference
        getattr(module, name)(*arguments, **named)

    return run


_LOADED = {name: _load(name) for name in ("_C", "_C_cuda")}
for _name in ("step", "advance"):
    _LIBRARY.impl(_name, _portable(_name), "XPU")
    if not _LOADED["_C_cuda"][0]:  # ROCm's tensors have this key too
        _LIBRARY.impl(_name, _portable(_name), "CUDA")
REFERENCE = "reference (plain torch)"
COMPILED = {"cpu": ("_C", "compiled C++"), "cuda": ("_C_cuda", "compiled CUDA")}

step = torch.ops.adaptive_kernels.step.default
advance = torch.ops.adaptive_kernels.advance.default


def workspace_shape(batch: int, elements: int) -> tuple[int, int, int]:
    """Shape of `workspace` for B samples of N elements: csrc/step_args.h."""
    return batch, 1 + max(-(-elements // 2048), 1), 16


def implementation(device: str) -> tuple[str, str]:
    """(implementation, why) that serves a device type such as "cpu" or "cuda"."""
    library, name = COMPILED.get(device, (None, None))
    loaded, why = _LOADED[library] if library else (False, "no compiled library for this device")
    if loaded:
        if device == "cuda" and not torch.cuda.is_available():
            why += "; no CUDA device is here"
        return name, why
    if device not in ("cuda", "xpu"):
        return REFERENCE, why if library else f"{why}; the reference needs a device with float64"
    found, triton = triton_kernels.available()
    return ("Triton" if found else REFERENCE), f"{why}; {triton}"


@functools.cache
def warn_if_slow(device: str) -> None:
    """Says once per device type that a slower implementation than its best serves it, and why."""
    name, why = implementation(device)
    # Where no library can be compiled for a device, Triton is its best.
    best = "Triton" if device == "xpu" or torch.version.hip else COMPILED.get(device, ("", ""))[1]
    if name != best:
        warnings.warn(
            f"{device} tensors are served by the slower {name}: {why}",
            RuntimeWarning,
            stacklevel=3,
        )


def info() -> dict:
    """What was built, what serves each device and why, as a dict of strings and booleans."""
    return {
        "version": __version__,
        "torch": torch.__version__,
        "libraries": {name: {"loaded": ok, "why": why} for name, (ok, why) in _LOADED.items()},
        "serves": {
            device: dict(zip(("implementation", "why"), implementation(device), strict=True))
            for device in ("cpu", "cuda", "xpu", "other")
        },
    }
