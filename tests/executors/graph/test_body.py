"""The kernels of `advance` as the loop's body takes them."""

import pytest

from adaptive_kernels.executors.graph import chain
from adaptive_kernels.executors.guard import CaptureError


def test_kernels_come_in_their_order_however_they_are_listed():
    assert chain([(1, "kernel", [])]) == [1]
    assert chain([(33, "kernel", [1]), (22, "kernel", [2]), (11, "kernel", [])]) == [11, 22, 33]


def test_advance_is_kernels_alone():
    with pytest.raises(CaptureError, match="must be kernels alone, got a node of type memset"):
        chain([(1, "kernel", []), (2, "memset", [0])])


@pytest.mark.parametrize(
    "nodes",
    [
        [(1, "kernel", []), (2, "kernel", [0]), (3, "kernel", [0]), (4, "kernel", [1, 2])],
        [(1, "kernel", []), (2, "kernel", [])],
        [(1, "kernel", [1]), (2, "kernel", [0])],
    ],
)
def test_anything_but_one_after_another_is_refused(nodes):
    with pytest.raises(CaptureError, match=f"kernels one after another, got {len(nodes)} of which"):
        chain(nodes)
