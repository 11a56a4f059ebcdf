"""Small parts of diffusers' pipelines with random weights, made here: nothing is fetched."""

import functools
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

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
    """Of 32 features."""
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


def vae(**config: Any) -> Any:
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
        **config,
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


def image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        intermediate_size=37,
        patch_size=8,
    )
    torch.manual_seed(0)
    return CLIPVisionModelWithProjection(config).eval()


def feature_extractor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=32, size=32)


def controlnet(**config: Any) -> Any:
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    net = ControlNetModel(
        **{
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "in_channels": 4,
            "norm_num_groups": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "conditioning_embedding_out_channels": (8, 16),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            **config,
        }
    )
    # Its last layers begin at zero, and would do nothing.
    for block in net.controlnet_down_blocks:
        torch.nn.init.normal_(block.weight, std=0.3)
    return net.eval()


def picture(channels: int = 3) -> torch.Tensor:
    """[1, channels, 2 SIZE, 2 SIZE] in [0, 1]: what the VAE turns into latents."""
    generator = torch.Generator().manual_seed(7)
    return torch.rand(1, channels, 2 * SIZE, 2 * SIZE, generator=generator)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
