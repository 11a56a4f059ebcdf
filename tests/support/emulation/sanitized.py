"""Run by test_kernels.py under AddressSanitizer: whole samplings of the emulated kernels.

The process ends with an error where a kernel reads or writes past a tensor's allocation, or does
what C++ leaves undefined. At the end one byte past a tensor is written on purpose in a child.
"""

import ctypes
import os

import torch

from tests.support import problems
from tests.support.emulation import emulated
from tests.support.implementations import EMULATED


def sample(rule, elements, granularity="sample"):
    table = problems.table(7, 3, stochastic="linear" not in rule)
    config = problems.config(rule, table, 1.0, granularity=granularity)
    state = EMULATED.begun(table, 2, elements, config, guided=True, dtype=torch.bfloat16)
    tick = 0
    while bool((state.index < 7).any()):
        state.model_output.copy_(problems.outputs(state, tick))
        state.advance()
        state.step(True)
        tick += 1


def overrun_is_found():
    child = os.fork()
    if child == 0:
        tensor = torch.zeros(40)
        os.close(2)
        ctypes.memset(tensor.data_ptr(), 0, tensor.nbytes + 1)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


if __name__ == "__main__":
    emulated.library(sanitized=True)
    for elements in (1, 17, 2048, 4099, 8200):
        for k, rule in enumerate((*problems.REUSE, *problems.FILLED)):
            shared = (12 << 10, 100 << 10, 227 << 10)[k % 3]
            emulated.set_device(1, 2, order="random", seed=elements + k, shared_memory=shared)
            sample(rule, elements)
            emulated.set_device(2, 2, cooperative=False, order="reversed")
            sample(rule, elements, "batch")
    assert overrun_is_found()
    print("clean; an overrun is found")
