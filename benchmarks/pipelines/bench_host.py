"""What an enabled pipeline costs the host, against the pipeline alone, on one CPU thread, eager.

    python -m pytest benchmarks/pipelines/bench_host.py --benchmark-only \
        --benchmark-json=bench/pipelines.json

Cases whose runners take turns, so that the medians of one run can be compared:

- a step: "skipped" is a skipped step's stand-ins, the network's (called as SDXL calls it) and the
  scheduler's; "own" is the scheduler's own step alone.
- a call: "never" is a whole SDXL call of 50 steps with a network of 5 ms under `never`, "plain" the
  same without us.
- a table: `SolverTable.from_scheduler` at 50 steps, which the first call of a kind waits for.
"""

import functools
import time

import pytest
import torch

import adaptive_kernels as ak
from adaptive_kernels.solvers.table import SolverTable
from tests.support.pipelines.image import sdxl
from tests.support.pipelines.loop import loop_pipeline
from tests.support.pipelines.parts import SIZE, scheduler

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 400
SOLVERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
RULES = {
    # With thresholds that always skip: the longest way through a skipped step.
    "every": ak.AdaptiveConfig(criterion="every(400)"),
    "third_order": ak.AdaptiveConfig(criterion="third_order", threshold=1e30, max_skip=STEPS),
    "defect": ak.AdaptiveConfig(criterion="defect", threshold=1e30, max_skip=15),
}
NETWORK_SECONDS = 0.005


def solver(name):
    kind, options = SOLVERS[name]
    return scheduler(kind, **options)


class Constant(torch.nn.Module):
    """A network that takes no time."""

    def __init__(self):
        super().__init__()
        self.output = torch.randn(2, 4, SIZE, SIZE)

    def forward(self, sample, timestep, **_):
        return (self.output,)


class Loop:
    """A pipeline's loop, a step at every call; begins again where it ends."""

    def __init__(self, name, config=None):
        self.pipe = loop_pipeline(solver(name), Constant())
        self.plain = config is None
        if not self.plain:
            ak.enable_adaptive(self.pipe, config)
        self.arguments = (torch.randn(2, 4, SIZE, SIZE), torch.tensor(5))
        text, pooled, ids = torch.randn(2, 77, 64), torch.randn(2, 32), torch.zeros(2, 6)
        self.keywords = {
            "encoder_hidden_states": text,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids},
            "return_dict": False,
        }
        self.running = self.loop()
        self()

    def loop(self):
        latents, output = torch.randn(2, 1, 4, SIZE, SIZE)
        schedule = self.pipe.scheduler
        schedule.set_timesteps(STEPS)
        schedule.scale_model_input(latents, schedule.timesteps[0])
        with self.pipe.progress_bar(total=STEPS):
            for t in schedule.timesteps:
                if not self.plain:
                    self.pipe.unet(*self.arguments, **self.keywords)
                latents = schedule.step(output, t, latents, return_dict=False)[0]
                yield

    @torch.no_grad()
    def __call__(self):
        try:
            next(self.running)
        except StopIteration:
            self.running = self.loop()
            next(self.running)


@functools.lru_cache(maxsize=1)
def step_rounds(name, rule, take_turns):
    loops = {"own": Loop(name), "skipped": Loop(name, RULES[rule])}
    rounds = take_turns(loops)
    made = ak.summary(loops["skipped"].pipe, as_dict=True)["last"]
    fresh = made["samplings"][0]["fresh"]
    assert sum(fresh) <= 8 + len(fresh) / 16, "these are not skipped steps"
    return rounds


def note(benchmark, group, implementation, calls, bytes_moved):
    benchmark.group = group
    benchmark.extra_info.update(
        implementation=implementation,
        bytes_moved=bytes_moved,
        operator_calls=calls,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


# Latents and output read, latents and what is handed back written, all of them float32.
BYTES = 4 * 4 * 4 * SIZE * SIZE


@pytest.mark.parametrize("implementation", ["own", "skipped"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SOLVERS)
def test_step(benchmark, replay, take_turns, count_operators, name, rule, implementation):
    rounds = step_rounds(name, rule, take_turns)[implementation]
    # The least of some: now and then a step is a refresh.
    calls = min(count_operators(rounds.call) for _ in range(3))
    note(benchmark, f"step-{name}-{rule}", implementation, calls, BYTES)
    replay(rounds)


class Call:
    """A whole SDXL call, in which the network takes its time."""

    def __init__(self, config=None):
        self.pipe = sdxl()
        self.output = torch.randn(2, 4, SIZE, SIZE)
        self.pipe.unet.forward = self.network
        if config is not None:
            ak.enable_adaptive(self.pipe, config)
        self.embeds = {
            "prompt_embeds": torch.randn(1, 16, 64),
            "negative_prompt_embeds": torch.randn(1, 16, 64),
            "pooled_prompt_embeds": torch.randn(1, 32),
            "negative_pooled_prompt_embeds": torch.randn(1, 32),
        }

    def network(self, sample, timestep, **_):
        until = time.perf_counter() + NETWORK_SECONDS
        while time.perf_counter() < until:
            pass
        return (self.output,)

    def __call__(self):
        self.pipe(**self.embeds, num_inference_steps=50, output_type="latent")


@functools.lru_cache(maxsize=1)
def call_rounds(take_turns):
    return take_turns({"plain": Call(), "never": Call(ak.AdaptiveConfig(criterion="never"))})


@pytest.mark.parametrize("implementation", ["plain", "never"])
def test_call(benchmark, replay, take_turns, implementation):
    rounds = call_rounds(take_turns)[implementation]
    note(benchmark, "call-never", implementation, None, 50 * BYTES)
    replay(rounds)


@pytest.mark.parametrize("name", SOLVERS)
def test_table(benchmark, replay, take_turns, name):
    made = solver(name)
    rounds = take_turns({"table": lambda: SolverTable.from_scheduler(made, 50)})["table"]
    note(benchmark, f"table-{name}", "table", None, 0)
    replay(rounds)
