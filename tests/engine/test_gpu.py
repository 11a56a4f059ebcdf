"""The engine on a GPU: the sampler's bits, one read of the device per tick, no half-freed state."""

import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.engine.request import noise_of
from tests.support import problems

pytestmark = pytest.mark.gpu
SHAPE, STEPS = (2, 8, 8), 20


class Rows(torch.nn.Module):
    """Elementwise, so that no row knows of another."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7, device="cuda"), requires_grad=False)

    def forward(self, x, timestep, label):
        time = timestep.float()[:, None, None, None] / 1000
        return torch.tanh(self.weight * x * (1.2 - time)) + label[:, None, None, None] * 0.1 * time


def label(value):
    return {"label": torch.tensor([float(value)], device="cuda")}


@pytest.mark.parametrize("rule", [*problems.REUSE, *problems.FILLED])
@pytest.mark.parametrize("slots", [1, 5])
def test_a_result_is_that_of_the_request_alone(rule, slots):
    table = problems.table(STEPS, 2, stochastic=rule in ("third_order", "defect"))
    config, model = problems.config(rule, table), Rows()
    scales = (None, 1.0, 4.0)
    requests = [
        ak.Request(seed=n, conditioning=label(n), guidance_scale=scales[n % 3]) for n in range(11)
    ]
    one = ak.Engine(
        *(model, table),
        **{"slots": slots, "shape": SHAPE, "config": config},
        **{"guidance_scale": 2.0, "unconditional": label(0)},
    )
    for sample in one.run(requests, progress=False):
        request = sample.request
        scale = 2.0 if request.guidance_scale is None else request.guidance_scale
        sampler = ak.AdaptiveSampler(table, config=config, guidance_scale=scale, executor="eager")
        alone = sampler(
            *(model, noise_of(request.seed, SHAPE).cuda(), request.conditioning),
            label(0) if scale != 1 else None,
            seed=[request.seed],
            progress=False,
        )
        assert torch.equal(sample.latents, alone.latents[0]) and sample.nfe == int(alone.nfe)
        assert torch.equal(sample.refreshed, alone.refreshed[:, 0])


def test_a_tick_reads_the_device_once():
    table, config = problems.ddim(STEPS), ak.AdaptiveConfig(criterion="never")
    one = ak.Engine(Rows(), table, slots=4, shape=SHAPE, config=config)
    requests = [ak.Request(seed=n, conditioning=label(n)) for n in range(4)]
    run = one.run(requests, progress=False)
    ticks, reads = one._batch.tick, []

    def watched():
        with torch.profiler.profile() as profile:
            out = ticks()
        copies = [e.count for e in profile.key_averages() if e.key.startswith("Memcpy DtoH")]
        reads.append(sum(copies))
        return out

    one._batch.tick = watched
    assert len(list(run)) == 4 and len(reads) == STEPS
    # The last one finds out what is not finite.
    assert reads == [1] * (STEPS - 1) + [2]
    assert 0 < one.report()["network_seconds"] < one.report()["tick_seconds"]


def test_nan_touches_no_other_and_memory_does_not_grow():
    table = problems.ddim(STEPS)
    one = ak.Engine(Rows(), table, slots=3, shape=SHAPE)
    bad = torch.full(SHAPE, torch.nan, device="cuda")
    requests = [
        ak.Request(seed=n, conditioning=label(1), noise=bad if n % 3 == 1 else None)
        for n in range(30)
    ]
    before = 0
    for number, sample in enumerate(one.run(requests, ordered=True, progress=False)):
        assert sample.nonfinite == (number % 3 == 1)
        if number == 9:
            before = torch.cuda.memory_allocated()
    # A sample's own latents and trace come and go.
    assert torch.cuda.memory_allocated() <= before + 2**20
    one.close()
