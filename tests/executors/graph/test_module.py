"""`_graph`: loops inside CUDA graphs, against a driver that stands in (fake_driver.py)."""

import itertools
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.driver import fake_driver
from tests.support.driver.fake_driver import FakeDriver
from tests.support.emulation.emulated import ROOT

_graph = pytest.importorskip("adaptive_kernels.executors._graph", exc_type=ImportError)
if fake_driver.missing():
    pytest.skip(
        f"needs a stand-in for the driver: {fake_driver.missing()}", allow_module_level=True
    )

DriverError = _graph.DriverError
FUNCTIONS = re.findall(r"F\((cu\w+)", (ROOT / "csrc" / "graph" / "driver.h").read_text())


@pytest.fixture
def fake():
    driver = FakeDriver()
    yield driver
    assert (driver.raised, driver.faults()) == ([], "")


def advance(fake, loop, ticks, graph=None, **options):
    """A captured kernel that ends the loop after so many ticks of a launch."""
    count, condition = itertools.count(1), loop.condition

    def advance(argument):
        fake.set_condition(condition, next(count) % ticks != 0)

    return fake.kernel(fake.graph() if graph is None else graph, advance, **options)


def idle(argument):
    pass


def test_importing_loads_neither_driver_nor_torch():
    code = """
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("_graph", sys.argv[1])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert not any(name in open("/proc/self/maps").read() for name in ("libcuda", "libtorch"))
        try:
            module.Driver("no-such")
        except module.DriverError as error:
            print(error)
    """
    code = "\n".join(line[8:] for line in code.splitlines())
    command = [sys.executable, "-c", code, _graph.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("no CUDA driver: no-such: cannot open shared object file")


@pytest.mark.parametrize("version", [12020, 12030])
def test_an_old_driver_is_refused_by_version(version):
    """Also where it lacks functions; which those are is said of a driver that should have them."""
    hidden = ("cuGraphConditionalHandleCreate",)
    for old in (FakeDriver(version=version), FakeDriver(hidden, version=version)):
        with pytest.raises(DriverError, match=rf"knows CUDA 12\.{version // 10 % 10}; .* 12\.4"):
            old.module()
    with pytest.raises(DriverError, match="has no cuGraphConditionalHandleCreate"):
        FakeDriver(hidden, version=_graph.LEAST_VERSION).module()


def test_a_body_runs_until_the_condition_is_zero(fake):
    """Launch after launch, and only what is in the body, in its order."""
    network, kernels = fake.graph(), fake.graph()
    first = fake.kernel(network, idle, 1)
    fake.kernel(network, idle, 2, after=(first,))
    destination, source = fake.memory("pinned", 8), fake.memory("device", b"progress")
    for ticks in range(1, 51):
        loop = fake.loop()
        last = advance(fake, loop, ticks, graph=kernels)
        child = loop.add_child(network, [])
        copy = loop.add_copy(destination.address, source.address, 8, [child])
        loop.add_kernel(last, [child, copy])
        loop.instantiate()
        loop.upload(5)
        tick = ["kernel idle(1)", "kernel idle(2)", "copy 8", "kernel advance(0)"]
        before = len(fake.log().splitlines())
        for _ in range(3):
            loop.launch(7)
        ran = fake.log().splitlines()[before:]
        assert ran == ["launch on 7", *tick * ticks] * 3
        assert bytes(destination.content) == b"progress"
    assert fake.launches() == 150 and "upload on 5" in fake.log()


def test_two_loops_live_side_by_side(fake):
    loops = [fake.loop(), fake.loop()]
    assert loops[0].condition != loops[1].condition
    for loop, ticks in zip(loops, (2, 3), strict=True):
        loop.add_kernel(advance(fake, loop, ticks, argument=ticks), [])
        loop.instantiate()
    assert fake.live()["execs"] == 2
    for loop in loops + loops:
        loop.launch(0)
    ticks = [line[-2] for line in fake.log().splitlines() if "kernel" in line]
    assert ticks == list("2233322333")


@pytest.mark.parametrize("cooperative", [False, True])
def test_captured_graphs_are_copied(fake, cooperative):
    """With arguments, sizes and attributes: they may be destroyed before the launch."""
    loop, network, kernels = fake.loop(), fake.graph(), fake.graph()
    fake.kernel(network, idle, argument=-(2**40))
    sizes = {"grid": (2, 3, 4), "block": (128, 2, 1), "shared": 4096}
    last = advance(fake, loop, 2, graph=kernels, argument=2**40, cooperative=cooperative, **sizes)
    loop.add_kernel(last, [loop.add_child(network, [])])
    written = f"kernel advance({2**40}) 2 3 4 128 2 1 4096{' cooperative' * cooperative} after 0"
    assert fake.plan(loop.condition).splitlines() == ["child graph", written]
    fake.destroy(network)
    fake.destroy(kernels)
    loop.instantiate()
    loop.launch(0)
    tick = [f"kernel idle({-(2**40)})", f"kernel advance({2**40})"]
    assert fake.log().splitlines() == ["launch on 0", *tick * 2]


def test_no_context_is_refused():
    with pytest.raises(DriverError, match="no CUDA context is current"):
        FakeDriver(context=False).loop()


def use_everything(fake):
    """Every function of the driver but the last two of a close; what it raised."""
    network, inner, kernels = fake.graph(), fake.graph(), fake.graph()
    fake.kernel(inner, idle)
    last = (fake.child(network, inner),)
    pinned, device = fake.memory("pinned", 4), fake.memory("device", 4)
    fake.copy(network, pinned, device, after=last)
    try:
        module = fake.module()
        assert [name for _, name, _ in module.nodes(network)] == ["child graph", "memcpy"]
        loop = fake.loop(module)
        child = loop.add_child(network, [])
        copy = loop.add_copy(pinned.address, device.address, 4, [])
        loop.add_kernel(advance(fake, loop, 2, graph=kernels), [child, copy])
        loop.instantiate()
        loop.upload(0)
        loop.launch(0)
        loop.close()
    except DriverError as error:
        return str(error)
    finally:
        for graph in (network, inner, kernels):
            fake.destroy(graph)


# Closing, and saying what an error is, go on. A copy that cannot be read is left to the driver, and
# an error about a pointer means pageable memory.
QUIET = {"cuGraphDestroy", "cuGraphExecDestroy", "cuGetErrorName", "cuGetErrorString"}
QUIET |= {"cuGraphMemcpyNodeGetParams", "cuPointerGetAttribute"}


@pytest.mark.parametrize("function", sorted({*FUNCTIONS} - QUIET))
def test_a_call_that_fails_is_named_and_leaves_nothing(fake, function):
    """Whichever call of the function it is."""
    for nth in itertools.count(1):
        fake.reset()
        fake.fail(function, nth)
        said = use_everything(fake)
        assert fake.live() == {"graphs": 0, "execs": 0}
        if said is None:
            break
        name = function.removesuffix("_v2").removesuffix("WithParams")
        assert said.startswith(name) and "CUDA_ERROR_OUT_OF_MEMORY" in said
    assert nth > 1


def test_an_error_without_a_name_is_given_by_number(fake):
    fake.fail("cuGraphCreate", error=1000)
    with pytest.raises(DriverError, match=r"^cuGraphCreate: error 1000$"):
        fake.loop()


def test_a_kernel_that_fails_ends_the_launch(fake):
    loop = fake.loop()
    loop.add_kernel(fake.kernel(fake.graph(), lambda argument: 1 // argument), [])
    loop.instantiate()
    with pytest.raises(DriverError, match="cuGraphLaunch: CUDA_ERROR_LAUNCH_FAILED"):
        loop.launch(0)
    assert isinstance(fake.raised.pop(), ZeroDivisionError)


def adders(fake, loop):
    """The three ways to add a node, by its `after`."""
    graph, pinned, device = fake.graph(), fake.memory("pinned", 4), fake.memory("device", 4)
    captured = fake.kernel(graph, idle)
    return [
        lambda after: loop.add_child(graph, after),
        lambda after: loop.add_kernel(captured, after),
        lambda after: loop.add_copy(pinned.address, device.address, 4, after),
    ]


def test_calls_out_of_order_are_refused(fake):
    loop = fake.loop()
    add = adders(fake, loop)
    add[0]([])
    uses = [lambda: loop.upload(0), lambda: loop.launch(0)]
    for use in uses:
        with pytest.raises(DriverError, match="the loop is not instantiated"):
            use()
    loop.instantiate()
    for use in [*(lambda one=one: one([0]) for one in add), loop.instantiate]:
        with pytest.raises(DriverError, match="the loop is instantiated already"):
            use()
    loop.close()
    loop.close()
    for use in [*uses, *(lambda one=one: one([0]) for one in add), loop.instantiate]:
        with pytest.raises(DriverError, match="closed"):
            use()


def test_no_driver_is_no_driver():
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        _graph.WhileGraph(None)


def test_a_node_follows_only_what_is_there(fake):
    loop = fake.loop()
    for add in adders(fake, loop):
        with pytest.raises(DriverError, match=r"follow nodes that are there, got 3"):
            add([3])
    assert fake.plan(loop.condition) == ""


@st.composite
def plans(draw):
    """[(how to add it, places before it)]"""
    kinds = draw(st.lists(st.sampled_from(["child", "kernel", "copy"]), min_size=1, max_size=8))
    places = [
        draw(st.lists(st.integers(0, k - 1), unique=True)) if k else [] for k in range(len(kinds))
    ]
    return list(zip(kinds, places, strict=True))


@given(plans())
def test_every_dependency_is_kept(plan):
    fake = FakeDriver()
    loop, captured = fake.loop(), fake.graph()
    for k, (kind, after) in enumerate(plan):
        pinned, device = fake.memory("pinned", k + 1), fake.memory("device", k + 1)
        if kind == "child":
            network = fake.graph()
            fake.kernel(network, idle, argument=k + 1)
            place = loop.add_child(network, after)
        elif kind == "kernel":
            place = loop.add_kernel(fake.kernel(captured, idle, argument=k + 1), after)
        else:
            place = loop.add_copy(pinned.address, device.address, k + 1, after)
        assert place == k
    loop.add_kernel(advance(fake, loop, 2), list(range(len(plan))))
    loop.instantiate()
    loop.launch(0)
    ran = [int(re.search(r"\d+", line)[0]) - 1 for line in fake.log().splitlines()[1:]]
    size = len(plan)
    assert ran[: size + 1] == ran[size + 1 :] and sorted(ran[:size]) == list(range(size))
    assert all(ran.index(k) > ran.index(b) for k, (_, after) in enumerate(plan) for b in after)
