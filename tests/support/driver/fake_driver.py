"""A stand-in for libcuda.so.1: CUDA graphs without a GPU, held to the rules of CUDA."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import weakref
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from torch.utils import cpp_extension

from tests.support.emulation.emulated import ROOT, compiler

HERE = Path(__file__).parent
SOURCES = [HERE / "fake_driver.cpp", HERE / "fake_controls.cpp"]
HEADERS = [HERE / "fake_graphs.h", HERE / "fake_run.h", ROOT / "csrc" / "graph" / "driver.h"]
FLAGS = ["-std=c++17", "-fPIC", "-shared", "-O1", "-Wall", "-Werror", "-fvisibility=hidden"]
OUT_OF_MEMORY = 2
HOST, DEVICE, UNIFIED = 1, 2, 4  # CUmemorytype
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)


@cache
def cuda_include():
    """The folder of cuda.h: the toolkit's, or of a package that torch needs; None: neither."""
    folders = [Path(cpp_extension.CUDA_HOME, "include")] if cpp_extension.CUDA_HOME else []
    package = find_spec("nvidia")
    for place in package.submodule_search_locations if package else ():
        folders += sorted(Path(place).glob("cu*/include"))
    return next((folder for folder in folders if (folder / "cuda.h").exists()), None)


def missing():
    """What building the stand-in lacks here; None: nothing."""
    if compiler() is None:
        return "no C++ compiler"
    return None if cuda_include() else "no cuda.h, neither of a toolkit nor of torch's packages"


def library(hidden=()):
    """The built stand-in, less some functions: the same file again as long as its sources stand."""
    # A hidden function is there under another name.
    flags = [
        *FLAGS,
        f"-I{ROOT / 'csrc'}",
        f"-I{cuda_include()}",
        *(f"-D{name}=hidden_{name}" for name in hidden),
    ]
    content = b"".join(path.read_bytes() for path in SOURCES + HEADERS)
    key = hashlib.sha256(repr(flags).encode() + content).hexdigest()[:16]
    built = ROOT / "build" / "fake_driver" / f"{key}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        unfinished = built.with_suffix(f".{os.getpid()}")
        command = [compiler(), *flags, *SOURCES, "-o", unfinished, "-ldl"]
        compilation = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert compilation.returncode == 0, compilation.stderr
        unfinished.rename(built)
    return built


@dataclass
class Memory:
    """Bytes that a copy may read or write, of the device, pinned or pageable."""

    kind: str
    content: ctypes.Array

    @property
    def address(self):
        return ctypes.addressof(self.content)

    @property
    def bytes(self):
        return len(self.content)


class FakeDriver:
    """One stand-in, with graphs of its own; a launch runs on the calling thread, node after node.

    Handles of graphs and nodes are integers, as `_graph` takes them. Not for two threads at once.
    """

    def __init__(self, hidden=(), **options):
        # A file of its own is a driver of its own.
        file, self.path = tempfile.mkstemp(prefix="fake_driver_", suffix=".so")
        os.close(file)
        weakref.finalize(self, os.unlink, self.path)
        shutil.copyfile(library(hidden), self.path)
        self.library = ctypes.CDLL(self.path)
        for name in ("graph", "node", "kernel", "copy", "child", "callback"):
            getattr(self.library, f"fake_{name}").restype = ctypes.c_uint64
        for name in ("log", "faults", "plan"):
            getattr(self.library, f"fake_{name}").restype = ctypes.c_char_p
        self.reset(**options)

    def reset(self, version=12040, context=True):
        """Forgets everything; a driver of that version, with or without a current context."""
        self.library.fake_reset(version, context)
        self.kept, self.callbacks, self.raised = [], {}, []

    def fail(self, function, nth=1, error=OUT_OF_MEMORY):
        """The nth call from now on of a function of the driver gives an error and does nothing."""
        self.library.fake_fail(function.encode(), nth, error)

    def module(self):
        """This driver, opened by `_graph`."""
        from adaptive_kernels.executors import _graph

        return _graph.Driver(self.path)

    def loop(self, module=None):
        """An empty loop of `_graph`."""
        from adaptive_kernels.executors import _graph

        return _graph.WhileGraph(module or self.module())

    def graph(self):
        """An empty graph, such as a capture leaves with the nodes that are added below."""
        return self.library.fake_graph()

    def kernel(
        self,
        graph,
        callback,
        argument=0,
        after=(),
        cooperative=False,
        grid=(1, 1, 1),
        block=(1, 1, 1),
        shared=0,
    ):
        """A kernel that calls callback(argument). What it raises ends the launch with an error."""
        sizes = (ctypes.c_uint * 7)(*grid, *block, shared)
        number = ctypes.c_uint64(self._callback(callback))
        more = (number, ctypes.c_int64(argument), cooperative, sizes)
        return self._captured("kernel", graph, after, *more)

    def copy(self, graph, destination, source, after=(), unified=False):
        """A copy of all of the source; unified: the node leaves open whose memory it is."""
        ends = []
        for end in (destination, source):
            kind = UNIFIED if unified else DEVICE if end.kind == "device" else HOST
            ends += [kind, ctypes.c_uint64(end.address)]
        return self._captured("copy", graph, after, *ends, ctypes.c_uint64(source.bytes))

    def node(self, graph, kind, after=()):
        """A node that is only there, of any type by number but a kernel, a copy or a child."""
        return self._captured("node", graph, after, kind)

    def child(self, graph, inner, after=()):
        """A copy of the graph `inner` as a node."""
        return self._captured("child", graph, after, ctypes.c_uint64(inner))

    def destroy(self, graph):
        """Destroys a graph, as torch does with one that it captured."""
        assert self.library.fake_destroy(ctypes.c_uint64(graph)), "no such graph"

    def call(self, function, *handles):
        """Calls a function of the driver with handles and pointers; returns its error's number."""
        wide = (ctypes.c_uint64(one) if isinstance(one, int) else one for one in handles)
        return getattr(self.library, function)(*wide)

    def memory(self, kind, content):
        """Memory of bytes, or of so many: "device", "pinned" or "pageable"."""
        kept = Memory(kind, (ctypes.c_uint8 * len(bytes(content)))(*bytes(content)))
        self.kept.append(kept)
        self._tell(kind, kept.address, kept.bytes)
        return kept

    def pin(self, tensor):
        """The tensor, its memory pinned from now on."""
        self.kept.append(tensor)
        self._tell("pinned", tensor.data_ptr(), tensor.nbytes)
        return tensor

    def device(self, tensor):
        """The tensor, its memory the device's from now on."""
        self.kept.append(tensor)
        self._tell("device", tensor.data_ptr(), tensor.nbytes)
        return tensor

    def set_condition(self, handle, value):
        """What a kernel does through cudaGraphSetConditional; for callbacks."""
        self.library.fake_set_condition(ctypes.c_uint64(handle), value)

    def live(self):
        """What is not destroyed: graphs (without those inside others) and what was instantiated."""
        return {"graphs": self._counts()[0], "execs": self._counts()[1]}

    def launches(self):
        return self._counts()[2]

    def log(self):
        """Launches, uploads, and the kernels and copies that ran, a line each: "kernel name(3)"."""
        return self.library.fake_log().decode()

    def plan(self, condition=0):
        """The body of that condition's loop, or of all loops, a line each node.

        "kernel advance(3) 1 1 1 32 1 1 0 cooperative after 0, 1": sizes of the grid and of its
        blocks, bytes of shared memory.
        """
        return self.library.fake_plan(ctypes.c_uint64(condition)).decode()

    def faults(self):
        """Why it refused what it refused since this was last asked, a line each."""
        said = self.library.fake_faults().decode()
        self.library.fake_forget_faults()
        return said

    def _captured(self, name, graph, after, *more):
        before = (ctypes.c_uint64 * len(after))(*after)
        arguments = (ctypes.c_uint64(graph), before, ctypes.c_size_t(len(after)), *more)
        handle = getattr(self.library, f"fake_{name}")(*arguments)
        assert handle, f"no {name}: a graph or a node that is not there, or a type that needs more"
        return handle

    def _callback(self, callback):
        """Its number; the driver then has it as long as this object lives."""
        if callback not in self.callbacks:
            weak = weakref.ref(self)

            def call(argument):
                try:
                    callback(argument)
                except BaseException as error:
                    weak().raised.append(error)
                    return 1
                return 0

            kept, name = CALLBACK(call), getattr(callback, "__name__", "callback")
            number = self.library.fake_callback(name.encode(), kept)
            self.callbacks[callback] = number
            self.kept.append(kept)
        return self.callbacks[callback]

    def _tell(self, kind, address, size):
        if kind != "pageable":
            memory = HOST if kind == "pinned" else DEVICE
            self.library.fake_memory(ctypes.c_uint64(address), ctypes.c_uint64(size), memory)

    def _counts(self):
        counts = (ctypes.c_int64 * 3)()
        self.library.fake_counts(counts)
        return list(counts)
