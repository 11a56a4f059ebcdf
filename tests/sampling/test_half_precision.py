"""A network's own rounding under `defect`: found, told from the fill's error, and reported."""

import math

import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.demo.model import NULL_LABEL, SAMPLE_SHAPE, demo_scheduler, load_demo_model
from adaptive_kernels.rules import precision
from adaptive_kernels.solvers.table import SolverTable
from tests.support.schedulers import CASE

STEPS, ELEMENTS = 50, 4096
TABLE = SolverTable.from_scheduler(demo_scheduler(), STEPS)
PATTERN = torch.randn(3, ELEMENTS, generator=torch.Generator().manual_seed(2))


class Wave:
    """A noise prediction that swings with the noise level, with white noise of `size` on top."""

    def __init__(self, size=0.0):
        self.size, self.generator = size, torch.Generator().manual_seed(5)
        levels = TABLE.levels
        lam = (levels.alpha[:-1] / levels.sigma[:-1]).log().tolist()
        self.lam = dict(zip(TABLE.timesteps.tolist(), lam, strict=True))

    def __call__(self, model_input, timestep):
        lam = torch.tensor([self.lam[int(t)] for t in timestep])[:, None]
        clean = PATTERN[: len(lam)] * (1 + 0.05 * torch.sin(2.5 * lam))
        return clean + self.size * torch.randn(clean.shape, generator=self.generator)


def sampled(size, **config):
    noise = torch.randn(3, ELEMENTS, generator=torch.Generator().manual_seed(1))
    rule = ak.AdaptiveConfig(threshold=0.0016, criterion="defect", **config)
    sampler = ak.AdaptiveSampler(TABLE, config=rule)
    return sampler(Wave(size), noise, progress=False)


def test_white_noise_is_found_and_costs_next_to_nothing():
    clean = sampled(0.0)
    assert clean.output_noise.tolist() == [0, 0, 0]
    calls = clean.nfe.float().mean()
    assert calls < 0.5 * STEPS
    for size in (0.008, 0.012):
        for warmup, most in ((3, 1.2), (None, precision.ALLOWED**2 * (1 + 1e-6))):
            # Where runs begin on the first output, the first defect holds more than noise.
            told = sampled(size, output_noise=size, warmup=warmup)
            found = told.output_noise.square() / size**2
            assert ((found > 0.8) & (found < most)).all(), found
            expected = calls if warmup is None else sampled(0.0, warmup=3).nfe.float().mean()
            assert (told.nfe.float().mean() - expected).abs() < 0.1 * expected
        assert sampled(size).nfe.float().mean() > 1.3 * calls  # nobody told


def test_noise_above_what_was_told_is_held_for_an_error():
    size = 0.006
    told, more = sampled(size, output_noise=size), sampled(4 * size, output_noise=size)
    most = torch.full((3,), precision.ALLOWED * size)
    assert torch.allclose(more.output_noise, most, rtol=1e-6)
    assert more.nfe.float().mean() > 1.2 * told.nfe.float().mean()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_nan_and_inf_call_the_network_in_a_noisy_sampling_too(wrong):
    network = Wave(0.01)

    def sick(model_input, timestep):
        output = network(model_input, timestep)
        if float(timestep[0]) < 600:
            output[0, 7] = wrong
        return output

    noise = torch.randn(2, ELEMENTS, generator=torch.Generator().manual_seed(1))
    config = ak.AdaptiveConfig(criterion="defect", output_noise=0.01)
    with pytest.warns(RuntimeWarning, match=r"samples \[0\] hold NaN or Inf"):
        result = ak.AdaptiveSampler(TABLE, config=config)(sick, noise, gather=False, progress=False)
    ill = (TABLE.timesteps < 600).nonzero()[0, 0] + 1
    assert result.refreshed[ill + 4 :, 0].all()
    assert not result.refreshed[:, 1].all()
    assert result.output_noise.isfinite().all()


def test_the_shipped_model_in_half_precision():
    """Ten samples, whose calls scatter; what sixty and more make is in docs/half-precision.md."""
    y = torch.arange(10)
    noise = torch.randn(10, *SAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    labels, null = {"class_labels": y}, {"class_labels": torch.full_like(y, NULL_LABEL)}
    calls = {}
    for dtype in (torch.float32, torch.bfloat16):
        for told in (None, 0.0):
            config = ak.AdaptiveConfig(criterion="defect", output_noise=told)
            sampler = ak.AdaptiveSampler(demo_scheduler(), 50, config, guidance_scale=2.0)
            result = sampler(load_demo_model(dtype), noise, labels, null, progress=False)
            calls[dtype, told] = result.nfe.float().mean().item()
            if dtype == torch.bfloat16 and told is None:
                # A guided pair, each of about one rounding.
                most = precision.ALLOWED * 2**-8 * math.sqrt(5)
                assert ((result.output_noise > 0.5 * most) & (result.output_noise <= most)).all()
    assert calls[torch.float32, None] == calls[torch.float32, 0.0]
    assert calls[torch.bfloat16, None] < 1.15 * calls[torch.float32, None]
    assert calls[torch.bfloat16, 0.0] > 1.6 * calls[torch.float32, None]


def test_autocast_around_the_call_tells_as_the_dtype_does():
    """Of float32 weights under autocast, guided: found, and no more calls than of bfloat16's."""
    y = torch.arange(4)
    noise = torch.randn(4, *SAMPLE_SHAPE, generator=torch.Generator().manual_seed(0))
    labels, null = {"class_labels": y}, {"class_labels": torch.full_like(y, NULL_LABEL)}
    most, calls = precision.ALLOWED * 2**-8 * math.sqrt(5), {}
    for told in (None, 0.0):
        config = ak.AdaptiveConfig(criterion="defect", output_noise=told)
        sampler = ak.AdaptiveSampler(demo_scheduler(), 50, config, guidance_scale=2.0)
        with torch.autocast("cpu", torch.bfloat16):
            result = sampler(load_demo_model(), noise, labels, null, progress=False)
        calls[told] = result.nfe.float().mean().item()
        if told is None:
            assert ((result.output_noise > 0.5 * most) & (result.output_noise <= most)).all()
    assert calls[None] < 0.75 * calls[0.0]


@pytest.mark.parametrize(
    ("fed", "cast", "computing"),
    [
        (torch.float32, None, torch.float32),
        (torch.float32, torch.float16, torch.float16),
        (torch.float16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float16, torch.bfloat16),
    ],
)
def test_a_network_computes_in_the_coarser_of_its_dtype_and_autocasts(fed, cast, computing):
    cpu = torch.device("cpu")
    with torch.autocast("cpu", cast or torch.bfloat16, enabled=cast is not None):
        assert precision.computing_dtype(fed, cpu) == computing
        assert precision.computing_dtype(fed, torch.device("meta")) == fed
    assert precision.computing_dtype(fed, cpu) == fed


def test_output_noise_is_a_dtype_a_number_or_one_for_each_step():
    def config(value):
        return ak.AdaptiveConfig(criterion="defect", output_noise=value).output_noise

    assert config(None) is None
    assert config(torch.bfloat16) == 2**-8 and config(torch.float16) == 2**-11
    assert config(torch.float32) == config(torch.float64) == 0
    assert config(torch.float8_e4m3fn) == 2**-4
    assert config([0.1, 2]) == config(torch.tensor([0.1, 2.0], dtype=torch.float64)) == (0.1, 2.0)
    for value, error, message in (
        (-1.0, ValueError, "output_noise must be at least 0 and finite, got -1.0"),
        (math.nan, ValueError, "output_noise must be at least 0 and finite, got nan"),
        (math.inf, ValueError, "output_noise must be at least 0 and finite"),
        ([0.1, -1], ValueError, "output_noise must be at least 0"),
        ([], ValueError, "output_noise must have one number for each step, got none"),
        (["a"], TypeError, "output_noise must hold numbers, got 'a'"),
        ("bfloat16", TypeError, "output_noise must be None, a dtype, a number or one number"),
        (True, TypeError, "output_noise must be None, a dtype, a number or one number"),
        (torch.int8, ValueError, "output_noise must be a floating-point dtype or a number, got"),
    ):
        with pytest.raises(error, match=message):
            config(value)
    with pytest.raises(ValueError, match=r"output_noise goes with criterion 'defect', got 0.1"):
        ak.AdaptiveConfig.paper(output_noise=0.1)
    with pytest.raises(ValueError, match="output_noise must be a number or one for each of the 50"):
        sampled(0.0, output_noise=[0.1] * 49)


def test_noise_by_the_step_is_saved_and_loaded(tmp_path):
    config = ak.AdaptiveConfig(criterion="defect", output_noise=[0.01 * k for k in range(STEPS)])
    ak.save_config(config, tmp_path / "config.json")
    assert ak.load_config(tmp_path / "config.json") == config
    # One size for all steps is the same as a number.
    same = sampled(0.01, output_noise=[0.01] * STEPS)
    assert torch.equal(same.latents, sampled(0.01, output_noise=0.01).latents)


def test_the_noise_of_a_network_is_measured():
    noise = torch.randn(2, ELEMENTS, generator=torch.Generator().manual_seed(1))
    for size in (0.002, 0.02):
        got = ak.measure_output_noise(Wave(size), TABLE, noise=noise, progress=False)
        assert len(got) == STEPS
        assert max(abs(one / size - 1) for one in got) < 0.1
    assert ak.measure_output_noise(Wave(), TABLE, noise=noise, progress=False) == (0,) * STEPS


def test_measuring_names_what_is_wrong():
    noise = torch.randn(1, 8)

    def broken(model_input, timestep):
        return model_input * math.nan

    with pytest.raises(ValueError, match="model must return finite outputs; step 0 gave NaN"):
        ak.measure_output_noise(broken, TABLE, noise=noise, progress=False)
    with pytest.raises(TypeError, match="noise must be a floating-point tensor"):
        ak.measure_output_noise(Wave(), TABLE, noise=[1.0], progress=False)
    with pytest.raises(TypeError, match="progress must be a bool"):
        ak.measure_output_noise(Wave(), TABLE, noise=noise, progress="no")
    with pytest.raises(TypeError, match="measure_output_noise has no argument 'stepz'"):
        ak.measure_output_noise(Wave(), CASE["ddim"].make(), 8, noise=noise, stepz=3)
