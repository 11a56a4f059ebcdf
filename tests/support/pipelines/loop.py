"""The shortest pipeline there is, around any scheduler."""

import inspect
from typing import Any

import torch

from .parts import quiet

STEPS = 14


class Sway(torch.nn.Module):
    """A network of one layer, whose output follows the latents and the timestep smoothly."""

    def __init__(self, channels: int = 2):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.calls = 0

    def forward(self, sample: Any, timestep: Any, **_: Any) -> tuple:
        self.calls += 1
        angle = torch.as_tensor(timestep).float().mean() / 300
        return ((self.layer(sample) + 0.3 * sample * torch.cos(angle)).tanh(),)


def base() -> type:
    """A pipeline of a U-Net and a scheduler, whose loop is still to be written."""
    from diffusers import DiffusionPipeline

    class Base(DiffusionPipeline):
        def __init__(self, unet, scheduler):
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

    return Base


def loop_pipeline(solver: Any, network: Any = None, name: str = "unet") -> Any:
    """The shortest pipeline there is; a call gives all that every step returned."""
    from diffusers import DiffusionPipeline

    class LoopPipeline(DiffusionPipeline):
        def __init__(self, network, scheduler):
            super().__init__()
            self.register_modules(**{name: network, "scheduler": scheduler})

        @torch.no_grad()
        def __call__(
            self,
            latents,
            steps=STEPS,
            generator=None,
            return_dict=False,
            edit=None,
            set_timesteps=None,
            begin=0,
            generated=True,
            **extra,
        ):
            self.scheduler.set_timesteps(steps, **(set_timesteps or {}))
            if begin and hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(begin)
            latents = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)
            parameters = inspect.signature(self.scheduler.step).parameters
            if generated and "generator" in parameters:
                extra["generator"] = generator
            results = []
            with self.progress_bar(total=steps) as bar:
                for i, t in enumerate(self.scheduler.timesteps[begin:]):
                    model_input = latents
                    if hasattr(self.scheduler, "scale_model_input"):
                        model_input = self.scheduler.scale_model_input(latents, t)
                    output = getattr(self, name)(model_input, t)[0]
                    more = {k: v(i) if callable(v) else v for k, v in extra.items()}
                    more["return_dict"] = return_dict
                    if "old_pred_original_sample" in parameters:
                        old = results[-1][1] if results else None
                        back = self.scheduler.timesteps[begin + i - 1] if i else None
                        result = self.scheduler.step(output, old, t, back, latents, **more)
                    else:
                        result = self.scheduler.step(output, t, latents, **more)
                    latents = result[0]
                    results.append(result)
                    if edit is not None:
                        latents = edit(self, i, latents)
                    bar.update()
            return results

    return quiet(LoopPipeline(network or Sway(), solver))
