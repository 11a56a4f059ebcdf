"""What pipelines do with latents once their loop is over: the VAE, and images of a kind."""

from typing import Any

import torch
from torch import Tensor

# Pipelines whose ends are those below.
DECODED = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_output(pipe: Any, output_type: str) -> None:
    """Raise ValueError for a kind of output that there is none of for this pipeline."""
    if output_type not in OUTPUT_TYPES:
        known = ", ".join(map(repr, OUTPUT_TYPES))
        raise ValueError(f"output_type must be one of {known}, got {output_type!r}")
    kind = type(pipe).__name__
    if output_type != "latent" and kind not in DECODED:
        raise ValueError(
            f"output_type must be 'latent' for {kind}, got {output_type!r}: images are made for "
            f"{', '.join(DECODED)}"
        )


@torch.no_grad()
def decode(pipe: Any, latents: Tensor, output_type: str, size: tuple[int, int] | None) -> list:
    """Images of latents [b, ...], as the pipeline's own call makes them of its last ones.

    size: height and width in pixels, of latents that are packed.
    """
    if hasattr(pipe, "_unpack_latents"):
        latents = pipe._unpack_latents(latents, *size, pipe.vae_scale_factor)
    vae, dtype = pipe.vae, pipe.vae.dtype
    # SDXL's overflows in half precision.
    upcast = (
        dtype == torch.float16 and vae.config.get("force_upcast") and hasattr(pipe, "upcast_vae")
    )
    try:
        if upcast:
            vae.to(dtype=torch.float32)
        hook = getattr(vae, "_hf_hook", None)
        device = getattr(hook, "execution_device", None) or vae.device
        latents = latents.to(device=device, dtype=vae.dtype)
        images = vae.decode(_unscaled(pipe, latents), return_dict=False)[0]
    finally:
        if upcast:
            vae.to(dtype=dtype)
    if getattr(pipe, "watermark", None) is not None:
        images = pipe.watermark.apply_watermark(images)
    flags = None
    if getattr(pipe, "safety_checker", None) is not None:
        images, flags = pipe.run_safety_checker(images, latents.device, dtype)
    whole = [True] * len(images) if flags is None else [not flag for flag in flags]
    plain = pipe.image_processor.postprocess(images, output_type=output_type, do_denormalize=whole)
    return list(plain)


def _unscaled(pipe: Any, latents: Tensor) -> Tensor:
    config = pipe.vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None and type(pipe).__name__.startswith("StableDiffusionXL"):
        mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        return latents * std / config.scaling_factor + mean
    # Flow-matching pipelines shift, the older ones have no shift.
    return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
