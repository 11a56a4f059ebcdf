"""The body of the loop as data: which nodes, after which."""

import pytest

from adaptive_kernels.executors.graph import Child, Copy, Kernel, body
from adaptive_kernels.executors.guard import CaptureError

PROGRESS = Copy(destination=10, source=20, bytes=8)


def test_the_copy_runs_beside_the_network_and_advance_after_both():
    """The copy reads what `advance` writes."""
    assert body(PROGRESS, 7, [(1, "kernel", [])]) == [
        PROGRESS,
        Child(7, ()),
        Kernel(1, (0, 1)),
    ]


def test_kernels_keep_their_order_however_they_are_listed():
    chain = [(33, "kernel", [1]), (22, "kernel", [2]), (11, "kernel", [])]
    assert body(PROGRESS, 7, chain)[2:] == [Kernel(11, (0, 1)), Kernel(22, (2,)), Kernel(33, (3,))]
    fork = [(1, "kernel", []), (2, "kernel", [0]), (3, "kernel", [0]), (4, "kernel", [1, 2])]
    assert body(PROGRESS, 7, fork)[3:] == [Kernel(2, (2,)), Kernel(3, (2,)), Kernel(4, (3, 4))]


def test_advance_is_kernels_alone():
    with pytest.raises(CaptureError, match="must be kernels alone, got a node of type memset"):
        body(PROGRESS, 7, [(1, "kernel", []), (2, "memset", [0])])
