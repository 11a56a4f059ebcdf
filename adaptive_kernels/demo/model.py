"""A small class-conditional diffusion model of Fashion-MNIST, with its weights and its schedule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

SAMPLE_SHAPE = (1, 32, 32)
NUM_CLASSES = 10
NULL_LABEL = 10
TRAIN_TIMESTEPS = 1000
BETA_START = 1e-4
BETA_END = 0.02
# fmt: off
CLASS_NAMES = (
    "T-shirt", "trousers", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)
# fmt: on
WEIGHTS_PATH = Path(__file__).parent / "weights" / "fashion_unet.safetensors"

CHANNELS = (32, 64, 96)
EMBEDDING = 384
GROUPS = 8
HEADS = 4


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip, scaled and shifted by the time and class embedding."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(EMBEDDING, 2 * channels_out)
        self.norm2 = nn.GroupNorm(GROUPS, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        # Each block starts as its skip, which keeps the high learning rate stable.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(
        self,
        x: Tensor,  # [B, channels_in, H, W]
        embedding: Tensor,  # [B, EMBEDDING]
    ) -> Tensor:  # [B, channels_out, H, W]
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, channels, H, W]
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, HEADS, channels // HEADS, height * width)
        h = F.scaled_dot_product_attention(*qkv.transpose(-1, -2).unbind(1))
        return x + self.out(h.transpose(-1, -2).reshape(batch, channels, height, width))


class FashionUNet(nn.Module):
    """Class-conditional U-Net that predicts the noise in a 32x32 Fashion-MNIST image.

    It works on the pixel-unshuffled 16x16 image, at 16x16, 8x8 and 4x4 with 32, 64 and 96
    channels, one residual block per level and attention at 4x4.
    """

    def __init__(self) -> None:
        super().__init__()
        low, mid, high = CHANNELS
        self.time = nn.Sequential(
            nn.Linear(EMBEDDING // 2, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING)
        )
        self.label = nn.Embedding(NUM_CLASSES + 1, EMBEDDING)
        self.stem = nn.Conv2d(4 * SAMPLE_SHAPE[0], low, 3, padding=1)
        self.down1 = ResidualBlock(low, low)
        self.shrink1 = nn.Conv2d(low, mid, 3, stride=2, padding=1)
        self.down2 = ResidualBlock(mid, mid)
        self.shrink2 = nn.Conv2d(mid, high, 3, stride=2, padding=1)
        self.down3 = ResidualBlock(high, high)
        self.attention1 = Attention(high)
        self.middle1 = ResidualBlock(high, high)
        self.attention2 = Attention(high)
        self.middle2 = ResidualBlock(high, high)
        self.up3 = ResidualBlock(2 * high, high)
        self.grow2 = nn.Conv2d(high, mid, 3, padding=1)
        self.up2 = ResidualBlock(2 * mid, mid)
        self.grow1 = nn.Conv2d(mid, low, 3, padding=1)
        self.up1 = ResidualBlock(2 * low, low)
        self.norm = nn.GroupNorm(GROUPS, low)
        self.head = nn.Conv2d(low, 4 * SAMPLE_SHAPE[0], 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, model_input: Tensor, timestep: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in each image, without random numbers or host synchronisation.

        Args:
            model_input: [B, 1, 32, 32] float32, images scaled to [-1, 1] and noised.
            timestep: [B] or 0-d, int64 or float, the training step from 0 to 999.
            class_labels: [B] int64, a class from 0 to 9 or NULL_LABEL; None is NULL_LABEL for all.

        Returns:
            The predicted noise, of model_input's shape and dtype.

        Raises:
            ValueError: model_input has another shape.
        """
        if model_input.shape[1:] != SAMPLE_SHAPE:
            raise ValueError(f"model_input must be [B, 1, 32, 32], got {list(model_input.shape)}")
        batch = model_input.shape[0]
        if class_labels is None:
            class_labels = model_input.new_full((batch,), NULL_LABEL, dtype=torch.int64)
        dtype = self.stem.weight.dtype
        # Made here in float32 and not kept as a buffer: .to(float16) would round the frequencies
        # and the angles, up to 1000 radians, would be off by half a radian.
        index = torch.arange(EMBEDDING // 4, dtype=torch.float32, device=model_input.device)
        frequencies = torch.exp(index * (-math.log(10000.0) / (EMBEDDING // 4)))
        angles = timestep.float().expand(batch)[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)
        embedding = F.silu(self.time(waves) + self.label(class_labels))

        x = F.pixel_unshuffle(model_input.to(dtype), 2)
        h1 = self.down1(self.stem(x), embedding)
        h2 = self.down2(self.shrink1(h1), embedding)
        h3 = self.attention1(self.down3(self.shrink2(h2), embedding))
        h = self.attention2(self.middle1(h3, embedding))
        h = self.middle2(h, embedding)
        h = self.up3(torch.cat([h, h3], dim=1), embedding)
        h = self.grow2(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.up2(torch.cat([h, h2], dim=1), embedding)
        h = self.grow1(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.up1(torch.cat([h, h1], dim=1), embedding)
        h = self.head(F.silu(self.norm(h)))
        return F.pixel_shuffle(h, 2).to(model_input.dtype)


def load_demo_model(
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> FashionUNet:
    """Load the shipped Fashion-MNIST model, ready for sampling: eval mode, no gradients.

    Args:
        dtype: dtype of the weights and the arithmetic; the images keep their own.
        device: where the model goes.

    Raises:
        FileNotFoundError: the weights are missing; examples/train_fashion_mnist.py makes them.
    """
    if not WEIGHTS_PATH.is_file():
        raise FileNotFoundError(f"the demo weights must be at {WEIGHTS_PATH}, found no file")
    model = FashionUNet()
    model.load_state_dict(load_file(WEIGHTS_PATH))
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def demo_scheduler() -> DDIMScheduler:
    """Make a DDIMScheduler with the noise schedule that the model was trained on.

    Raises:
        ImportError: diffusers is not installed.
    """
    from diffusers import DDIMScheduler

    # Trailing steps start at the last training step, where alpha-bar is 4e-5 and the image pure
    # noise; set_alpha_to_one makes the last step return the predicted clean image.
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
