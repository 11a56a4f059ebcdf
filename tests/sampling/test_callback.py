"""What a callback returns is what the sampling goes on with; anything else is refused."""

import dataclasses

import pytest
import torch

import adaptive_kernels as ak
from tests.support import problems
from tests.support.networks import Network

STEPS = 12
RULES = {
    "never": ak.AdaptiveConfig(criterion="never"),
    "defect": ak.AdaptiveConfig(0.03),
    "third_order": ak.AdaptiveConfig.paper(threshold=0.3),
}


def noise(batch=3, seed=0):
    return torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def sampler(rule="defect", solver=None, **options):
    solver = solver or problems.ddim(STEPS)
    return ak.AdaptiveSampler(solver, config=RULES[rule], progress=False, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize("rule", RULES)
def test_latents_that_are_returned_as_they_were_change_no_bit(rule, guidance, dtype):
    one = sampler(rule, guidance_scale=guidance, dtype=dtype)
    plain = one(Network(), noise(), {}, {} if guidance else None)
    same = one(
        Network(), noise(), {}, {} if guidance else None, callback=lambda info: info.latents()
    )
    assert torch.equal(plain.latents, same.latents)
    assert torch.equal(plain.refreshed, same.refreshed)


def test_latents_that_are_returned_are_what_the_network_reads_next():
    """Against the scheduler's own loop with the same edit between its steps."""
    table = problems.ddim(STEPS)
    assert table.history == 1
    inputs, shift = [], torch.linspace(-1, 1, 16).view(4, 4)

    def network(x, timestep):
        inputs.append(x.clone())
        return torch.tanh(x)

    def callback(info):
        return info.latents().to(torch.float16 if info.tick == 3 else torch.float32) + shift

    result = sampler("never", table)(network, noise(), callback=callback)
    x = noise()
    for i in range(STEPS):
        assert (inputs[i] - x * table.input_scale[i]).abs().max() < 1e-4
        m = torch.tanh(x * table.input_scale[i])
        h = table.p[i] * x + table.q[i] * m
        x = table.A[i] * x + table.C[i, 0] * h
        x = (x.half() if i == 2 else x) + shift
    assert (result.latents - x).abs().max() < 1e-3


def test_an_edit_is_seen_by_the_rule():
    """Latents that jump have differences and defects that no run is skipped over."""
    jump = [0, 2, 1, 3, 0, 4, 2, 1, 5, 3, 2, 4]
    for rule in ("defect", "third_order"):
        plain = sampler(rule)(Network(), noise())
        edited = sampler(rule)(
            Network(), noise(), callback=lambda info: info.latents() + jump[info.tick % len(jump)]
        )
        assert edited.nfe.sum() > plain.nfe.sum()


def test_inpainting_keeps_what_is_known():
    from adaptive_kernels.demo.model import SAMPLE_SHAPE, demo_scheduler, load_demo_model

    model, generator = load_demo_model(), torch.Generator().manual_seed(0)
    x, z = (torch.randn(3, *SAMPLE_SHAPE, generator=generator) for _ in range(2))
    one = ak.AdaptiveSampler(demo_scheduler(), 20, progress=False)
    image = one(model, x).latents.flip(0)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    levels = one.table.levels
    seen = []

    def keep(info):
        known = info.noised(image, z)
        i = info.index.long()
        alpha, sigma = (v[i].float().view(-1, 1, 1, 1) for v in (levels.alpha, levels.sigma))
        assert torch.equal(known, alpha * image + sigma * z)
        seen.append(info.index.tolist())
        return mask * info.latents() + (1 - mask) * known

    result = one(model, x, callback=keep)
    assert seen[-1] == [20] * 3 and any(len(set(index)) > 1 for index in seen)
    assert (result.latents - image)[..., :16].abs().max() < 1e-6
    # The other half is sampled, beside what is known and not as before.
    assert (result.latents - image)[..., 16:].abs().mean() > 0.01
    assert int(result.nfe.max()) < 20


def test_noised_needs_levels():
    def ask(info):
        info.noised(noise(), noise())

    table = dataclasses.replace(problems.ddim(STEPS), levels=None)
    with pytest.raises(ValueError, match=r"noised\(\) needs a solver whose noise levels are known"):
        sampler("third_order", table)(Network(), noise(), callback=ask)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (True, TypeError, "callback must return None or latents .*, got bool"),
        ({"latents": noise()}, TypeError, "callback must return None or latents .*, got dict"),
        (noise(2), ValueError, r"callback returns must have shape \(3, 2, 4, 4\), got \(2, 2"),
        (noise().long(), TypeError, "callback returns must be a floating-point .*int64"),
        (noise().to("meta"), ValueError, "callback returns must be on cpu"),
    ],
)
def test_anything_else_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        sampler()(Network(), noise(), callback=lambda info: value)
