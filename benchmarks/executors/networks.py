"""The networks that loop.py samples: stacks sized on the device, and two pipelines' U-Nets.

Weights are random: what a network costs and which kernels it launches do not depend on them. All
read their timestep and conditioning, so that a stale one changes the latents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.support.clock import Clock

DTYPE = torch.bfloat16
TOKENS = 77  # of a prompt

# https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5, unet/config.json
SD15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
# https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0, unet/config.json
SDXL = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# Every kind of conditioning at a size for a CPU.
TINY = SDXL | {
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 2],
    "attention_head_dim": [2, 2],
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
}


class Missing(Exception):
    """What a network needs is not here; the case is skipped and says so."""


@dataclass
class Network:
    """A model and what a sampler is called with: one sample, two rows of the network."""

    model: nn.Module
    noise: Tensor  # [1, 4, S, S] float32
    conditioning: dict[str, Any]
    unconditional: dict[str, Any]
    note: str
    facts: dict[str, Any] = field(default_factory=dict)


class Stack(nn.Module):
    """Residual MLP blocks on patches of the latents: matrix products, GELU and layer norms.

    A block takes some ten microseconds of a large GPU, in kernels of a few, as in a real network.
    """

    def __init__(self, blocks: int, width: int = 512, context: int = 768, layers: int = 64):
        super().__init__()
        self.blocks, self.width = blocks, width
        self.enter, self.leave = nn.Linear(16, width), nn.Linear(width, 16)
        self.time, self.text = nn.Linear(width, width), nn.Linear(context, width)
        # Blocks beyond these use the same weights again, which the cache has forgotten by then.
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(min(blocks, layers)))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in self.up)

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """[rows, 4, S, S]. timestep: [rows]. text: [rows, tokens, context]."""
        patches = F.pixel_unshuffle(x, 2)
        h = self.enter(patches.flatten(2).transpose(1, 2))
        condition = self.time(embedding(timestep, self.width).to(x.dtype)) + self.text(text).mean(1)
        h = h + condition[:, None]
        for k in range(self.blocks):
            up, down = self.up[k % len(self.up)], self.down[k % len(self.up)]
            h = h + down(F.gelu(up(self.norm(h))))
        out = self.leave(self.norm(h)).transpose(1, 2)
        return F.pixel_shuffle(out.unflatten(2, patches.shape[2:]), 2)

    def norm(self, h: Tensor) -> Tensor:
        return F.layer_norm(h, (self.width,))


def embedding(timestep: Tensor, width: int) -> Tensor:
    """[rows, width] float32: sines and cosines, made on the device."""
    at = torch.arange(width // 2, device=timestep.device) * (-math.log(10_000.0) / (width // 2))
    angles = timestep.float()[:, None] * at.exp()
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def stack(clock: Clock, wanted_us: float, size: int = 64, **shape) -> Network:
    """A stack whose replay takes about the wanted time, by measuring two others."""
    generator = torch.Generator(clock.device).manual_seed(0)
    noise, given = inputs(size, {"text": (TOKENS, 768)}, clock.device, generator)

    def build(blocks: int) -> Stack:
        torch.manual_seed(0)
        with torch.device(clock.device):
            return Stack(blocks, **shape).to(DTYPE).eval().requires_grad_(False)

    def replay_us(blocks: int) -> float:
        model = build(blocks)
        x, at = noise.to(DTYPE).repeat(2, 1, 1, 1), torch.zeros(2, device=clock.device)
        text = torch.cat([half["text"] for half in given])
        return replay(clock, lambda: model(x, at, text))

    few, many = (replay_us(blocks) for blocks in (4, 20))
    block_us = max((many - few) / 16, 1e-3)
    blocks = max(1, round((wanted_us - few) / block_us) + 4)
    model = build(blocks)
    note = f"{blocks} blocks of width {model.width}"
    return Network(model, noise, *given, note, {"blocks": blocks, "wanted_us": wanted_us})


def replay(clock: Clock, call: Callable[[], Tensor]) -> float:
    """Microseconds of a call as a graph, quickly."""
    for _ in range(2):
        call()
    clock.wait()
    graph = clock.capture(call)
    return clock.measure(lambda k: graph(), 5, seconds=0.05).us


def unet(clock: Clock, config: dict, least_bytes: float = 0.0) -> Network:
    """A `UNet2DConditionModel` of a config with random weights.

    Raises: Missing where diffusers is not here, or less memory than `least_bytes`.
    """
    if clock.device == "cuda" and (free := torch.cuda.mem_get_info()[0]) < least_bytes:
        raise Missing(f"{least_bytes / 1e9:.0f} GB of device memory needed, {free / 1e9:.1f} free")
    model = on_meta(config).to_empty(device=clock.device)
    generator = torch.Generator(clock.device).manual_seed(0)
    fill(model, generator)
    noise, given = inputs(config["sample_size"], shapes(config), clock.device, generator)
    given = [nested(half) for half in given]
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    import diffusers

    note = f"{millions:.1f} M parameters, diffusers {diffusers.__version__}"
    return Network(model, noise, *given, note, {"parameters": millions * 1e6})


def on_meta(config: dict) -> nn.Module:
    """The model without memory; on a host, a default initialisation of SDXL takes a minute."""
    try:
        from diffusers import UNet2DConditionModel
    except Exception as error:
        raise Missing(f"diffusers cannot be imported: {error}") from error
    with torch.device("meta"):
        return UNet2DConditionModel(**config).to(DTYPE).eval().requires_grad_(False)


def fill(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the size of what they are given: none of it overflows."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(0 if name.endswith("bias") else 1)


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """{argument of the model: its shape for one sample}."""
    arguments = {"encoder_hidden_states": (TOKENS, config["cross_attention_dim"])}
    if config.get("addition_embed_type") == "text_time":
        times = 6
        pooled = config["projection_class_embeddings_input_dim"]
        pooled -= times * config["addition_time_embed_dim"]
        arguments |= {"text_embeds": (pooled,), "time_ids": (times,)}
    return arguments


def nested(half: dict[str, Tensor]) -> dict[str, Any]:
    """As the model takes them: what is added to the timestep stands in a dictionary."""
    text = half.pop("encoder_hidden_states")
    return {"encoder_hidden_states": text, **({"added_cond_kwargs": half} if half else {})}


def inputs(
    size: int, wanted: dict[str, tuple[int, ...]], device: str, generator: torch.Generator
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Noise of one sample, its conditioning and its unconditional half."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator, device=device)

    noise = normal(4, size, size)
    halves = [{name: normal(*dims).to(DTYPE) for name, dims in wanted.items()} for _ in range(2)]
    return noise, halves
