"""Small pipelines of diffusers with random weights, made here: nothing is fetched."""

import functools
import inspect
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

STEPS = 14
SIZE = 16  # of the latents, in both directions


@functools.cache
def tokenizer() -> Any:
    """A CLIP tokenizer of single letters."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer(
            str(Path(folder) / "vocab.json"),
            str(Path(folder) / "merges.txt"),
            model_max_length=16,
        )


def text_encoder(projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=189,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        vocab_size=190,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=[16, 32],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=2 * SIZE,
    ).eval()


def unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        **{
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "sample_size": SIZE,
            "in_channels": 4,
            "out_channels": 4,
            "norm_num_groups": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            **config,
        }
    ).eval()


XL = {
    "cross_attention_dim": 64,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def scheduler(name: str = "EulerDiscreteScheduler", **config: Any) -> Any:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        kind = getattr(diffusers, name)
        return kind.from_config({**BETAS, "timestep_spacing": "leading", **config})


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(kind: str = "StableDiffusionXLPipeline", solver: Any = None, **more: Any) -> Any:
    """A tiny SDXL pipeline, text encoders and all."""
    import diffusers

    return quiet(
        getattr(diffusers, kind)(
            **{
                "vae": vae(),
                "text_encoder": text_encoder(),
                "text_encoder_2": text_encoder(projection=True),
                "tokenizer": tokenizer(),
                "tokenizer_2": tokenizer(),
                "unet": unet(**XL),
                "scheduler": solver or scheduler(),
                "add_watermarker": False,
                **more,
            }
        )
    )


def generate(pipe: Any, steps: int = STEPS, seed: int = 0, **arguments: Any) -> torch.Tensor:
    """Latents of a call, always from the same noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return pipe(
            **{
                "prompt": "a red ball",
                "num_inference_steps": steps,
                "generator": torch.Generator().manual_seed(seed),
                "output_type": "latent",
                **arguments,
            }
        )[0]


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


def loop_pipeline(solver: Any, network: Any = None) -> Any:
    """The shortest pipeline there is; a call gives all that every step returned."""
    from diffusers import DiffusionPipeline

    class LoopPipeline(DiffusionPipeline):
        def __init__(self, unet, scheduler):
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

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
            if generated and "generator" in inspect.signature(self.scheduler.step).parameters:
                extra["generator"] = generator
            results = []
            with self.progress_bar(total=steps) as bar:
                for i, t in enumerate(self.scheduler.timesteps[begin:]):
                    model_input = latents
                    if hasattr(self.scheduler, "scale_model_input"):
                        model_input = self.scheduler.scale_model_input(latents, t)
                    output = self.unet(model_input, t)[0]
                    result = self.scheduler.step(
                        output, t, latents, **extra, return_dict=return_dict
                    )
                    latents = result[0]
                    results.append(result)
                    if edit is not None:
                        latents = edit(self, i, latents)
                    bar.update()
            return results

    return quiet(LoopPipeline(network or Sway(), solver))
