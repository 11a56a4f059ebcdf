"""What `_graph` says of a captured graph: its nodes, and which of them a loop cannot hold."""

import re

import pytest

from tests.support.driver import fake_driver
from tests.support.driver.fake_driver import FakeDriver

_graph = pytest.importorskip("adaptive_kernels.executors._graph", exc_type=ImportError)
if fake_driver.missing():
    pytest.skip(
        f"needs a stand-in for the driver: {fake_driver.missing()}", allow_module_level=True
    )

DriverError = _graph.DriverError


@pytest.fixture
def fake():
    driver = FakeDriver()
    yield driver
    assert (driver.raised, driver.faults()) == ([], "")


def idle(argument):
    pass


# Type by number: how it is named, and a word of its usual cause.
FORBIDDEN = {
    3: ("host callback", "collective"),
    6: ("event", "external=True"),
    7: ("event", "external=True"),
    8: ("external semaphore", "graphics"),
    9: ("external semaphore", "graphics"),
    10: ("memory allocation", "cudaMallocAsync"),
    11: ("memory allocation", "cudaMallocAsync"),
    12: ("batched memory operation", "communication"),
    13: ("conditional", "torch.cond"),
    15: ("unknown", "newer"),
}


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_a_node_that_a_body_cannot_hold_is_named(fake, kind):
    name, cause = FORBIDDEN[kind]
    graph, outer = fake.graph(), fake.graph()
    fake.kernel(graph, idle)
    fake.node(graph, kind)
    fake.child(outer, graph)
    loop = fake.loop()
    said = f"node 1 of 2 is a node of type {name}, .* usually from .*{re.escape(cause)}"
    for captured, where in ((graph, ""), (outer, "inside a child graph, ")):
        refusal = fake.module().refusal(captured)
        assert re.match(where + said, refusal)
        with pytest.raises(DriverError, match=re.escape(refusal)):
            loop.add_child(captured, [])
    assert fake.plan(loop.condition) == ""


def test_what_a_body_can_hold_is_not_refused(fake):
    graph = fake.graph()
    last = (fake.kernel(graph, idle),)
    for kind in (2, 5):
        last = (fake.node(graph, kind, after=last),)
    fake.child(graph, fake.graph(), after=last)
    assert fake.module().refusal(graph) is None
    loop = fake.loop()
    loop.add_child(graph, [])
    loop.instantiate()


@pytest.mark.parametrize("kind", ["pinned", "pageable"])
@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("upwards", [False, True])
def test_a_copy_of_pageable_memory_is_refused(fake, kind, unified, upwards):
    ends = [fake.memory(kind, 4), fake.memory("device", 4)]
    graph = fake.graph()
    fake.copy(graph, *(reversed(ends) if upwards else ends), unified=unified)
    said = fake.module().refusal(graph)
    if kind == "pinned":
        assert said is None
    else:
        assert re.search(r"node 0 of 1 is a copy from or to pageable .*\.to\(device\)", said or "")


def test_nodes_lists_a_captured_graph(fake):
    graph = fake.graph()
    kernel = fake.kernel(graph, idle)
    memset = fake.node(graph, 2, after=(kernel,))
    copy = fake.copy(graph, fake.memory("pinned", 4), fake.memory("device", 4), after=(kernel,))
    child = fake.child(graph, fake.graph(), after=(copy, memset))
    assert fake.module().nodes(graph) == [
        (kernel, "kernel", []),
        (memset, "memset", [0]),
        (copy, "memcpy", [0]),
        (child, "child graph", [2, 1]),
    ]
    assert fake.module().nodes(fake.graph()) == []
