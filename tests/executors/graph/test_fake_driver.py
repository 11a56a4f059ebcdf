"""The driver that stands in keeps the rules of CUDA; what they leave undefined is an error here."""

import ctypes
import itertools
import struct

import pytest

from tests.support.driver import fake_driver
from tests.support.driver.fake_driver import FakeDriver

if fake_driver.missing():
    pytest.skip(
        f"needs a stand-in for the driver: {fake_driver.missing()}", allow_module_level=True
    )

HOST_CALLBACK, CONDITIONAL, WHILE, ASSIGN_DEFAULT = 3, 13, 1, 1


class Raw:
    """The functions of the driver; what they make, or None where they refuse."""

    def __init__(self):
        self.fake = FakeDriver()
        assert self.fake.call("cuInit", 0) == 0
        self.context = self.created("cuCtxGetCurrent")

    def created(self, function, *arguments):
        out = ctypes.c_uint64()
        error = self.fake.call(function, ctypes.byref(out), *arguments)
        assert bool(error) == (out.value == 0), "a handle is written only for what was made"
        return out.value or None

    def handle(self, graph, flags=ASSIGN_DEFAULT):
        return self.created("cuGraphConditionalHandleCreate", graph, self.context, 1, flags)

    def loop(self, graph, handle):
        """The body of a WHILE node added to the graph."""
        fields = (CONDITIONAL, handle, WHILE, 1, 0, self.context)
        params = ctypes.create_string_buffer(struct.pack("i12xQiIQQ", *fields), 256)
        node = self.created("cuGraphAddNode", graph, None, 0, params)
        bodies = struct.unpack_from("Q", params.raw, 32)[0]
        assert bool(node) == bool(bodies), "the bodies are written only with the node"
        return ctypes.c_uint64.from_address(bodies).value if node else None

    def looping(self, flags=ASSIGN_DEFAULT):
        """(a graph of one loop, its body)"""
        graph = self.fake.graph()
        return graph, self.loop(graph, self.handle(graph, flags))

    def instantiate(self, graph):
        return self.created("cuGraphInstantiateWithParams", graph, (ctypes.c_uint64 * 4)())


@pytest.fixture
def raw():
    return Raw()


def test_what_was_destroyed_is_not_used_again(raw):
    graph = raw.fake.graph()
    node = raw.fake.node(graph, 5)
    execution = raw.instantiate(graph)
    for function, handle in (("cuGraphExecDestroy", execution), ("cuGraphDestroy", graph)):
        assert raw.fake.call(function, handle) == 0
        assert raw.fake.call(function, handle) != 0
    assert raw.fake.call("cuGraphLaunch", execution, 0) != 0
    assert raw.fake.call("cuGraphNodeGetType", node, ctypes.byref(ctypes.c_int())) != 0
    assert raw.instantiate(graph) is None and raw.handle(graph) is None
    assert raw.fake.live() == {"graphs": 0, "execs": 0}


def test_a_dependency_is_in_the_same_graph(raw):
    one, other = raw.fake.graph(), raw.fake.graph()
    before = (ctypes.c_uint64 * 2)(*[raw.fake.node(one, 5)] * 2)
    assert raw.created("cuGraphAddChildGraphNode", one, before, 1, other)
    assert raw.created("cuGraphAddChildGraphNode", one, before, 2, other) is None
    assert raw.created("cuGraphAddChildGraphNode", other, before, 1, raw.fake.graph()) is None
    assert raw.fake.faults() == "a dependency twice\na dependency in another graph\n"


def test_a_handle_is_for_one_node_of_its_root(raw):
    one, other = raw.fake.graph(), raw.fake.graph()
    handle, inner = raw.handle(one), raw.handle(one)
    assert raw.loop(other, handle) is None
    assert raw.instantiate(one) is None
    body = raw.loop(one, handle)
    assert raw.loop(one, handle) is None
    assert raw.handle(body) is None
    assert raw.instantiate(one) is None
    assert raw.loop(body, inner) and raw.instantiate(one)
    assert raw.fake.faults().splitlines() == [
        "a conditional handle of another root",
        "a conditional handle without a node",
        "a second node of a conditional handle",
        "a handle of a graph that is no root",
        "a conditional handle without a node",
    ]


def test_a_graph_with_a_loop_is_instantiated_once_and_no_child(raw):
    graph, _ = raw.looping()
    execution = raw.instantiate(graph)
    assert raw.instantiate(graph) is None
    assert raw.fake.call("cuGraphExecDestroy", execution) == 0
    assert raw.instantiate(graph)
    assert raw.created("cuGraphAddChildGraphNode", raw.fake.graph(), None, 0, graph) is None


def test_a_body_holds_nothing_forbidden_at_any_depth(raw):
    for depth in range(3):
        graph, body = raw.looping()
        inner = raw.fake.graph() if depth else body
        raw.fake.node(inner, HOST_CALLBACK)
        for _ in range(depth - 1):
            outer = raw.fake.graph()
            raw.fake.child(outer, inner)
            inner = outer
        if depth:
            raw.fake.child(body, inner)
        assert raw.instantiate(graph) is None
        assert raw.fake.faults() == "a node of type 3 in a body\n"


def test_a_condition_is_set_before_it_is_read(raw):
    graph, _ = raw.looping(flags=0)
    assert raw.fake.call("cuGraphLaunch", raw.instantiate(graph), 0) != 0
    raw.fake.set_condition(12345, 1)
    assert raw.fake.faults().splitlines() == [
        "the condition is read before it is set",
        "a condition is set while nothing runs",
    ]


def test_loops_nest(raw):
    """The default of the inner one holds for the first tick of the outer one alone."""
    fake, graph = raw.fake, raw.fake.graph()
    outer, inner = raw.handle(graph), raw.handle(graph)
    body = raw.loop(graph, outer)
    nested = raw.loop(body, inner)
    outer_ticks, inner_ticks = itertools.count(1), itertools.count(1)
    fake.kernel(nested, lambda _: fake.set_condition(inner, next(inner_ticks) % 3 != 0))
    fake.kernel(body, lambda _: fake.set_condition(outer, next(outer_ticks) % 2 != 0))
    execution = raw.instantiate(graph)
    for _ in range(2):
        assert fake.call("cuGraphLaunch", execution, 0) == 0
    assert (next(inner_ticks), next(outer_ticks)) == (7, 5)
    assert fake.faults() == "" and fake.raised == []
