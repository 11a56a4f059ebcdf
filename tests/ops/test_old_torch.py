"""One build of the CPU library runs on torch 2.11 and on the newest: it is loaded and serves."""

import torch

from adaptive_kernels import ops


def test_the_compiled_library_serves_this_torch():
    served = ops.info()["serves"]["cpu"]
    assert served["implementation"] == "compiled C++", (torch.__version__, served["why"])
