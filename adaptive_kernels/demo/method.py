"""One of the samplers that the demo compares: run in rounds, and put in figures."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..metrics import psnr, ssim
from ..rules.config import AdaptiveConfig
from ..sampler import AdaptiveSampler
from ..sampling import StepInfo
from . import model as demo_model


class Method:
    """One way to sample, its last result and its best wall time."""

    def __init__(self, what: str, steps: int, config: AdaptiveConfig, guidance: float) -> None:
        self.what, self.steps, self.config, self.guidance = what, steps, config, guidance
        self.sampler = AdaptiveSampler(demo_model.demo_scheduler(), steps, config, guidance)
        self.rounds_s: list[float] = []

    def run(self, model: torch.nn.Module, noise: Tensor, labels: Tensor, bar: tqdm) -> None:
        before, self.network_rows = bar.n, 0

        def network(model_input: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
            self.network_rows += len(model_input)
            return model(model_input, timestep, class_labels)

        # A scale of 1 needs the conditional half alone, and the sampler refuses the other one.
        null = {"class_labels": torch.full_like(labels, demo_model.NULL_LABEL)}

        def show(info: StepInfo) -> None:
            bar.update(before + info.index.double().mean().item() / self.steps - bar.n)

        start = time.perf_counter()
        self.result = self.sampler(
            network,
            noise,
            {"class_labels": labels},
            null if self.guidance != 1 else None,
            callback=show,
            progress=False,
        )
        self.rounds_s.append(time.perf_counter() - start)

    @property
    def wall_s(self) -> float:
        """Of the best round: other work on the machine can only make one longer."""
        return min(self.rounds_s)

    def quality(self, full: Method) -> tuple[Tensor, Tensor]:  # PSNR and SSIM, [B] float64
        images, reference = (m.result.latents.clamp(-1, 1) for m in (self, full))
        return psnr(images, reference), ssim(images, reference)

    def figures(self, full: Method) -> dict:
        nfe = self.result.nfe.double()
        db, similarity = self.quality(full)
        differs = db[db.isfinite()].sort().values
        worst = differs[: math.ceil(len(db) / 10)]
        return {
            "what": self.what,
            "num_inference_steps": self.steps,
            "nfe_mean": nfe.mean().item(),
            "nfe_min": int(nfe.min()),
            "nfe_max": int(nfe.max()),
            "network_rows": self.network_rows,
            "wall_s": self.wall_s,
            "rounds_s": self.rounds_s,
            "speedup": full.wall_s / self.wall_s,
            "psnr_db": differs.mean().item() if len(differs) else None,
            "psnr_db_worst_tenth": worst.mean().item() if len(differs) else None,
            "ssim": similarity.mean().item(),
            "identical": len(db) - len(differs),
        }


def scatter(methods: dict[str, Method]) -> tuple[float, str]:
    """The largest ratio of a method's second best round to its best, and the method.

    1 where there is one round. Two that agree are as fast as the method is: a disturbance makes a
    round longer, and each one another.
    """
    ratios = {name: sorted(m.rounds_s)[:2][-1] / m.wall_s for name, m in methods.items()}
    name = max(ratios, key=ratios.get)
    return ratios[name], name
