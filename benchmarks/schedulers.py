"""How many calls the default rule makes under each scheduler: `python -m benchmarks.schedulers`.

The shipped model under the schedulers that its network fits, at several numbers of steps: network
calls per sample of AdaptiveConfig(), and the PSNR to the same solver with all of them, from the
same noise. Some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from tqdm import tqdm

import adaptive_kernels as ak
from adaptive_kernels.demo import model as demo_model
from adaptive_kernels.files import write_json
from adaptive_kernels.metrics import psnr

from .check.device import ask
from .fidelity.problem import TRAILING, FlowModel
from .support.machine import cpu_model

STEPS = (50, 20, 10, 6)
GUIDANCE, PER_CLASS = 2.0, 2

_NO_CLIP = {"clip_sample": False}
# name: (class, configuration beside the model's own schedule, arguments of the sampler).
SCHEDULERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", _NO_CLIP, {}),
    "Euler": ("EulerDiscreteScheduler", {}, {}),
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}, {}),
    "LMS": ("LMSDiscreteScheduler", {}, {}),
    "DEIS": ("DEISMultistepScheduler", {}, {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {}, {}),
    "DPM-Solver++ 2M, Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
    "DPM-Solver++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}, {}),
    "DPM-Solver++ singlestep": ("DPMSolverSinglestepScheduler", {}, {}),
    "UniPC": ("UniPCMultistepScheduler", {}, {}),
    "Heun": ("HeunDiscreteScheduler", {}, {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}, {}),
    "FlowMatch Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}),
    "FlowMatch Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, {}),
    "DDIM, eta 1": ("DDIMScheduler", _NO_CLIP, {"step_kwargs": {"eta": 1.0}}),
    "DDPM": ("DDPMScheduler", _NO_CLIP, {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, {}),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}, {}),
    "DPM-Solver++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "LCM": ("LCMScheduler", _NO_CLIP, {}),
    "TCD": ("TCDScheduler", _NO_CLIP, {}),
}


def scheduler(name: str) -> Any:
    """A new scheduler with the noise schedule that the shipped model was trained on."""
    kind, config, _ = SCHEDULERS[name]
    schedule = {} if kind.startswith("FlowMatch") else TRAILING
    made = getattr(diffusers, kind)
    known = inspect.signature(made.__init__).parameters
    return made(**{key: value for key, value in schedule.items() if key in known}, **config)


def measure(
    name: str, steps: int, model: Callable, samples: tuple[torch.Tensor, dict, dict]
) -> dict[str, Any]:
    """Calls and PSNR of the default rule under a scheduler; `refused` says why there are none."""
    runs = {}
    arguments = {**SCHEDULERS[name][2], "guidance_scale": GUIDANCE, "progress": False}
    network = FlowModel(model) if name.startswith("FlowMatch") else model
    found = {"scheduler": name, "steps": steps}
    for rule, config in (("full", ak.AdaptiveConfig(criterion="never")), ("default", None)):
        try:
            sampler = ak.AdaptiveSampler(scheduler(name), steps, config, **arguments)
        except ValueError as error:
            return {**found, "refused": str(error)}
        runs[rule] = sampler(network, *samples)
    images = [runs[rule].latents.clamp(-1, 1) for rule in ("default", "full")]
    db = psnr(*images)
    table, nfe = sampler.table, runs["default"].nfe.double()
    return {
        **found,
        **{"rows": table.num_steps, "adds_noise": table.adds_noise},
        **{"calls": nfe.mean().item(), "calls_min": int(nfe.min()), "calls_max": int(nfe.max())},
        # Samples of which nothing was skipped are the full run's own.
        "psnr_db": None if not bool(db.isfinite().any()) else db[db.isfinite()].mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    parser.add_argument("--only", action="append", choices=SCHEDULERS, help="these schedulers")
    parser.add_argument("--steps", type=int, action="append", help="these numbers of steps")
    given = parser.parse_args()
    model = demo_model.load_demo_model()
    labels = torch.arange(demo_model.NUM_CLASSES).repeat_interleave(PER_CLASS)
    noise = torch.randn(
        len(labels), *demo_model.SAMPLE_SHAPE, generator=torch.Generator().manual_seed(0)
    )
    null = {"class_labels": torch.full((1,), demo_model.NULL_LABEL)}
    samples = (noise, {"class_labels": labels}, null)
    names, counts = given.only or [*SCHEDULERS], given.steps or STEPS
    rows = []
    with tqdm(total=len(names) * sum(counts), unit="step") as bar, warnings.catch_warnings():
        # That little is skipped is what is measured here.
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", FutureWarning)
        for name in names:
            for steps in counts:
                bar.set_description(name)
                rows.append(measure(name, steps, model, samples))
                bar.update(steps)
    write_json(
        given.out,
        {
            **{"model": "shipped", "guidance_scale": GUIDANCE, "samples": len(labels)},
            **{"torch": torch.__version__, "diffusers": diffusers.__version__},
            **{"machine": cpu_model(), "commit": ask("git", "rev-parse", "--short", "HEAD")},
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
