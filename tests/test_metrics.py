"""psnr and ssim equal scikit-image's, sample by sample, and refuse what they cannot compare."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from adaptive_kernels.metrics import psnr, ssim

# Both sides work in float64. Variances are differences of sums of up to about 10, so each carries
# some 1e-15 of rounding, and c2 >= 3.6e-3 stands below them: 1e-9 leaves room for any order of
# summation and none for another window, border or constant.
TOLERANCE = 1e-9


def pair(shape: tuple[int, ...], seed: int, dtype=torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    # Another strength for every sample, so that a mixed-up batch cannot pass.
    strength = torch.linspace(0.05, 0.5, max(shape[0], 1), dtype=torch.float64)[: shape[0]]
    images = reference + noise * strength.view(-1, *[1] * (len(shape) - 1))
    return images.to(dtype), reference.to(dtype)


def skimage_ssim(image: np.ndarray, reference: np.ndarray, data_range: float) -> float:
    return structural_similarity(
        image,
        reference,
        data_range=data_range,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    height=st.integers(11, 37),
    width=st.integers(11, 37),
    data_range=st.sampled_from([1.0, 2.0, 255.0]),
    seed=st.integers(0, 1000),
)
def test_equal_to_scikit_image(batch, channels, height, width, data_range, seed):
    images, reference = pair((batch, channels, height, width), seed)
    images, reference = images * data_range / 2, reference * data_range / 2
    got_psnr = psnr(images, reference, data_range)
    got_ssim = ssim(images, reference, data_range)
    assert got_psnr.dtype == got_ssim.dtype == torch.float64
    assert got_psnr.shape == got_ssim.shape == (batch,)
    for b in range(batch):
        x, y = images[b].numpy(), reference[b].numpy()
        want = peak_signal_noise_ratio(y, x, data_range=data_range)
        assert got_psnr[b].item() == pytest.approx(want, abs=TOLERANCE)
        want = skimage_ssim(x, y, data_range)
        assert got_ssim[b].item() == pytest.approx(want, abs=TOLERANCE)


def test_float32_images_are_compared_in_float64():
    images, reference = pair((2, 1, 32, 32), seed=1, dtype=torch.float32)
    assert torch.equal(psnr(images, reference), psnr(images.double(), reference.double()))
    assert torch.equal(ssim(images, reference), ssim(images.double(), reference.double()))


def test_one_identical_sample_beside_one_that_differs():
    images, reference = pair((2, 1, 16, 16), seed=2)
    images[0] = reference[0]
    assert psnr(images, reference)[0].item() == math.inf
    assert psnr(images, reference)[1].item() < 40
    assert ssim(images, reference)[0].item() == pytest.approx(1, abs=TOLERANCE)
    assert ssim(images, reference)[1].item() < 0.99


def test_a_constant_error_has_the_psnr_of_the_formula():
    reference = torch.zeros(1, 3, 5)
    assert psnr(reference + 0.5, reference, 2.0).item() == pytest.approx(10 * math.log10(16))


def test_nan_stays_in_its_sample():
    images, reference = pair((2, 1, 16, 16), seed=3)
    images[0, 0, 8, 8] = math.nan
    assert psnr(images, reference).isnan().tolist() == [True, False]
    assert ssim(images, reference).isnan().tolist() == [True, False]


def test_an_empty_batch_gives_an_empty_result():
    empty = torch.zeros(0, 1, 16, 16)
    assert psnr(empty, empty).shape == ssim(empty, empty).shape == (0,)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("images", "reference", "data_range", "message"),
    [
        ((2, 1, 16, 16), (2, 1, 16, 15), 2.0, r"shape of reference \(2, 1, 16, 15\), got \(2, 1,"),
        ((1, 1, 16, 16), (2, 1, 16, 16), 2.0, "images must have the shape of reference"),
        ((16,), (16,), 2.0, r"images must be \[B, \.\.\.\]"),
        ((2, 0, 16, 16), (2, 0, 16, 16), 2.0, "an element per sample"),
        ((2, 1, 16, 16), (2, 1, 16, 16), 0.0, "data_range must be positive and finite, got 0.0"),
        ((2, 1, 16, 16), (2, 1, 16, 16), math.nan, "data_range must be positive"),
    ],
)
def test_refusals(metric, images, reference, data_range, message):
    with pytest.raises(ValueError, match=message):
        metric(torch.zeros(images), torch.zeros(reference), data_range)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 16), r"images must be \[B, C, H, W\], got the shape \(2, 16, 16\)"),
        ((2, 1, 10, 32), "images must be at least 11x11 .* got 10x32"),
    ],
)
def test_refusals_of_ssim(shape, message):
    with pytest.raises(ValueError, match=message):
        ssim(torch.zeros(shape), torch.zeros(shape))
