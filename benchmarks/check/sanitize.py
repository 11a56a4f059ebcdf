"""Runs `step` and `advance` of every rule at a few sizes, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python -m benchmarks.check.sanitize

Buffers that nothing has written yet are left as they were allocated, so that initcheck sees a read
of them, and inputs come from the host, so that few kernels but ours run. gpu_check.sh turns torch's
allocator off: every tensor is then an allocation of its own, and memcheck sees a step past its end.
"""

import argparse
import itertools
import sys

import torch

from adaptive_kernels import ops
from adaptive_kernels.sampling.state import State
from tests.support import problems

STEPS, BATCH = 8, 2
# One element, a scalar tail, a piece of a block and one more element, 16-byte rows over two pieces.
ELEMENTS = (1, 17, 2049, 4104)
# More than a grid that runs at once holds in registers: blocks take several pieces.
MANY = 1_200_000
# (history, stages), and the network's dtype with it.
SOLVERS = (
    (1, 1, torch.bfloat16),
    (3, 1, torch.float16),
    (5, 1, torch.float32),
    (2, 2, torch.float32),
)


def moved(state: State, device: str) -> State:
    """The state on the device; what a sampling has not written yet is not written here either."""
    there = problems.elsewhere(state, device)
    for name in ("latents", "history", "outputs"):
        if (value := getattr(state, name)) is not None:
            setattr(there, name, torch.empty(value.shape, dtype=value.dtype, device=device))
    there.latents[0].copy_(state.latents[0])
    if device != "cpu":
        shape = ops.workspace_shape(*state.latents.shape[1:])
        there.workspace = torch.zeros(shape, dtype=torch.float64).to(device)
    return there


def sample(rule: str, granularity: str, elements: int, device: str, batch: int = BATCH) -> None:
    """A sampling by `advance` and `step` in turns; every sample waits or goes on as it decides."""
    turn = elements + len(rule) + len(granularity)
    history, stages, dtype = SOLVERS[turn % len(SOLVERS)]
    # A solver that adds noise has no repair.
    stochastic = rule in problems.REUSE and turn % 2 == 0
    table = problems.table(STEPS, history, stages, stochastic, seed=turn)
    config = problems.config(rule, table, 0.4, 3, granularity, turn)
    state = problems.state(table, batch, elements, config, turn % 3 > 0, dtype, seed=turn)
    state.model_output.copy_(torch.randn(state.model_output.shape))
    state = moved(state, device)
    for k in range(STEPS):
        if k % 3 == 1:
            state.step(True)
        else:
            state.advance()
    x = state.current().cpu()
    if not bool(x.isfinite().all()) or int(state.index.min()) < STEPS // 2:
        raise AssertionError(f"{rule}, {granularity}, {elements}: steps {state.index.tolist()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--elements", type=int, nargs="+", default=[*ELEMENTS, MANY])
    options = parser.parse_args()
    torch.manual_seed(0)
    rules = (*problems.REUSE, *problems.FILLED)
    for elements in options.elements:
        if elements < MANY:
            for rule, granularity in itertools.product(rules, ("sample", "batch")):
                sample(rule, granularity, elements, options.device)
        else:
            for rule in ("third_order", "defect"):
                sample(rule, "sample", elements, options.device, batch=1)
        print(f"{elements} elements: done", flush=True)
    if options.device != "cpu":
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
