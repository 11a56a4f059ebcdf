"""Small networks of the kinds that pipelines call: a convolutional U-Net and a DiT."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def embedding(timestep, width):
    half = width // 2
    rates = torch.exp(
        torch.arange(half, device=timestep.device) * (-math.log(10_000.0) / max(half - 1, 1))
    )
    angles = timestep.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class UNet(nn.Module):
    """Convolutions, group norms, one level down and up, a time embedding and a label."""

    def __init__(self, channels=4, width=32, labels=10):
        super().__init__()
        self.width = width
        self.time = nn.Linear(width, width)
        self.label = nn.Embedding(labels, width)
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.leave = nn.Conv2d(2 * width, channels, 3, padding=1)

    def forward(self, x, timestep, label=None):
        t = self.time(embedding(timestep, self.width).to(x.dtype))
        if label is not None:
            t = t + self.label(label)
        first = F.silu(self.norm(self.enter(x)) + t[:, :, None, None])
        deep = F.silu(self.middle(F.silu(self.down(first))))
        back = self.up(F.interpolate(deep, size=first.shape[-2:]))
        return self.leave(torch.cat([first, back], dim=1))


class DiT(nn.Module):
    """Patches, attention with F.scaled_dot_product_attention, modulation by the timestep."""

    def __init__(self, channels=4, width=64, heads=2, depth=2, patch=2):
        super().__init__()
        self.width, self.heads = width, heads
        self.enter = nn.Conv2d(channels, width, patch, stride=patch)
        self.time = nn.Linear(width, 2 * width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.mlp = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = nn.ConvTranspose2d(width, channels, patch, stride=patch)

    def forward(self, x, timestep, label=None):
        grid = self.enter(x)
        tokens = grid.flatten(2).transpose(1, 2)
        time = self.time(embedding(timestep, self.width).to(x.dtype))
        scale, shift = time[:, None].chunk(2, dim=-1)
        for qkv, mlp in zip(self.qkv, self.mlp, strict=True):
            normed = F.layer_norm(tokens, (self.width,)) * (1 + scale) + shift
            q, k, v = (
                part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in qkv(normed).chunk(3, dim=-1)
            )
            mixed = F.scaled_dot_product_attention(q, k, v)
            tokens = tokens + mlp(mixed.transpose(1, 2).flatten(-2))
        return self.leave(tokens.transpose(1, 2).unflatten(-1, grid.shape[-2:]))


def made(kind, seed=0, **options):
    torch.manual_seed(seed)
    return kind(**options).eval().requires_grad_(False)
