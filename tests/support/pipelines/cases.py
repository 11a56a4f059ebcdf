"""Pipelines by name, each with a call that it takes."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from . import image, video
from .parts import SIZE, XL, controlnet, picture, unet

STEPS = 14


def _embeds(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def _half() -> Tensor:
    mask = torch.zeros(1, 1, 2 * SIZE, 2 * SIZE)
    mask[..., :SIZE] = 1
    return mask


def _pil() -> PIL.Image.Image:
    array = (picture()[0].permute(1, 2, 0) * 255).round().byte()
    return PIL.Image.fromarray(array.numpy())


@dataclass(frozen=True)
class Case:
    """A pipeline and the arguments of its call beside the usual ones."""

    make: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]] = field(default=dict)
    networks: tuple[str, ...] = ("unet",)

    def generate(self, pipe: Any, steps: int = STEPS, seed: int = 0, **more: Any) -> Tensor:
        """Latents, always from the same noise."""
        known = inspect.signature(type(pipe).__call__).parameters
        usual = {
            "prompt": "a red ball",
            "num_inference_steps": steps,
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "latent",
        }
        usual = {name: value for name, value in usual.items() if name in known}
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            output = pipe(**{**usual, **self.arguments(), **more})[0]
        return output if torch.is_tensor(output) else torch.as_tensor(np.asarray(output))


_PIXELS = {"height": 2 * SIZE, "width": 2 * SIZE}


def _inpaint() -> dict[str, Any]:
    return {"image": picture(), "mask_image": _half(), "strength": 1.0, **_PIXELS}


def _kandinsky() -> dict[str, Any]:
    embeds = _embeds(1, 32)
    return {"image_embeds": embeds, "negative_image_embeds": -embeds, **_PIXELS}


def _pixart() -> dict[str, Any]:
    embeds, mask = _embeds(1, 4, 32), torch.ones(1, 4)
    return {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": embeds,
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": -embeds,
        "negative_prompt_attention_mask": mask,
        "use_resolution_binning": False,
        **_PIXELS,
    }


def _i2vgen() -> dict[str, Any]:
    # clip_skip=1, its default, looks for a part of the text encoder that transformers 5 has not.
    return {"image": _pil(), "num_frames": 4, "target_fps": 4, "clip_skip": None, **_PIXELS}


def _svd() -> dict[str, Any]:
    return {"image": picture(), "num_frames": 2, "max_guidance_scale": 2.5, **_PIXELS}


_BOTH = ("controlnet", "unet")
_SD, _XL = image.sd, image.sdxl
CASES = {
    "sd15": Case(_SD),
    "sd15-unguided": Case(_SD, lambda: {"guidance_scale": 1.0}),
    "sd2": Case(image.sd2),
    "sd2-rescaled": Case(image.sd2, lambda: {"guidance_rescale": 0.7, "negative_prompt": "blue"}),
    "ldm": Case(image.ldm, lambda: {"guidance_scale": 5.0, **_PIXELS}),
    "sd-img2img": Case(
        partial(_SD, "StableDiffusionImg2ImgPipeline"),
        lambda: {"image": picture(), "strength": 0.7},
    ),
    "sd-inpaint": Case(partial(_SD, "StableDiffusionInpaintPipeline"), _inpaint),
    "sd-inpaint-9": Case(
        lambda **more: _SD("StableDiffusionInpaintPipeline", unet=unet(in_channels=9), **more),
        _inpaint,
    ),
    "sd-controlnet": Case(
        lambda **more: _SD("StableDiffusionControlNetPipeline", controlnet=controlnet(), **more),
        lambda: {"image": picture()},
        _BOTH,
    ),
    "sd-controlnet-guess": Case(
        lambda **more: _SD("StableDiffusionControlNetPipeline", controlnet=controlnet(), **more),
        lambda: {"image": picture(), "guess_mode": True, "control_guidance_end": 0.5},
        _BOTH,
    ),
    "sd-controlnets": Case(
        lambda **more: _SD(
            "StableDiffusionControlNetPipeline", controlnet=[controlnet(), controlnet()], **more
        ),
        lambda: {"image": [picture(), picture()]},
        _BOTH,
    ),
    "sd-controlnet-img2img": Case(
        lambda **more: _SD(
            "StableDiffusionControlNetImg2ImgPipeline", controlnet=controlnet(), **more
        ),
        lambda: {"image": picture(), "control_image": picture(), "strength": 0.8},
        _BOTH,
    ),
    "sd-t2i-adapter": Case(image.sd_adapter, lambda: {"image": picture()}),
    "sdxl": Case(_XL),
    "sdxl-base": Case(_XL, lambda: {"denoising_end": 0.7}),
    "sdxl-refiner": Case(
        partial(_XL, "StableDiffusionXLImg2ImgPipeline"),
        lambda: {"image": picture(), "denoising_start": 0.2},
    ),
    "sdxl-img2img": Case(
        partial(_XL, "StableDiffusionXLImg2ImgPipeline"),
        lambda: {"image": picture(), "strength": 0.7},
    ),
    "sdxl-inpaint": Case(partial(_XL, "StableDiffusionXLInpaintPipeline"), _inpaint),
    "sdxl-controlnet": Case(
        lambda **more: _XL(
            "StableDiffusionXLControlNetPipeline", controlnet=controlnet(**XL), **more
        ),
        lambda: {"image": picture()},
        _BOTH,
    ),
    "kandinsky22": Case(image.kandinsky22, _kandinsky),
    "pixart": Case(image.pixart, _pixart, ("transformer",)),
    "stable-cascade": Case(image.cascade_prior, lambda: _PIXELS, ("prior",)),
    "i2vgen-xl": Case(video.i2vgen, _i2vgen),
    "text-to-video": Case(video.text_to_video, lambda: {"num_frames": 3, **_PIXELS}),
    "svd": Case(video.svd, _svd),
    "animatediff": Case(video.animatediff, lambda: {"num_frames": 4, **_PIXELS}),
}
