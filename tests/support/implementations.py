"""The implementations of the ops: states whose verbs are theirs, and claims made of all of them."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import Phase, given, settings

from adaptive_kernels import ops
from adaptive_kernels.ops import reference
from adaptive_kernels.ops.triton import launch as triton_kernels
from adaptive_kernels.sampling.state import State
from tests.support import problems
from tests.support.agreement import RULES
from tests.support.emulation import emulated

# Whole and broken tiles of the CPU, programs of Triton, and pieces of CUDA, where a multiple of 8
# elements is moved 16 bytes at a time.
CPU_SIZES = [1, 3, 15, 16, 17, 1023, 1024, 1025, 16385]
TRITON_SIZES = [1, 5000, 3, 17, 1025, 2049]
CUDA_SIZES = [8, 16, 2048, 2056, 4096, 8200, 14344, 1, 3, 17, 2049, 5001]
# Multiprocessors, and blocks on each: from a device that holds one block to one that holds all;
# shared memory for no piece of a run, for one or two, for all.
DEVICES = [(1, 1), (1, 2), (2, 2), (7, 7)]
SHARED = [8 << 10, 100 << 10, 227 << 10]


def states(step: Callable, advance: Callable) -> type[State]:
    """The class of states whose verbs are these."""

    class Served(State):
        def step(self, fresh, condition=None):
            step(*self.arguments(), fresh, condition)

        def advance(self, condition=None):
            advance(*self.arguments(), condition)

    return Served


_CLASSES: dict[str, type[State]] = {}


@dataclass(frozen=True)
class Implementation:
    """One of them.

    load: () -> (step, advance), which skips where it cannot be had. kernels: whether it is one of a
    GPU's: it needs a workspace, and adds sums in an order of its own. share: of the examples of a
    claim, fewer where it is slow. vary: called with a seed before every example.
    """

    name: str
    load: Callable[[], tuple[Callable, Callable]]
    sizes: Sequence[int]
    kernels: bool = True
    device: str = "cpu"
    share: float = 1.0
    vary: Callable[[int], None] = lambda seed: None
    marks: Sequence = field(default=())

    def begin(self) -> type[State]:
        """The class of its states; skips where the implementation cannot be had."""
        if self.name not in _CLASSES:
            _CLASSES[self.name] = states(*self.load())
        return _CLASSES[self.name]

    def state(self, state: State) -> State:
        """The same state in buffers of its own where this implementation wants them."""
        moved = problems.elsewhere(state, self.device, self.begin())
        moved.workspace = None
        if self.kernels:
            shape = ops.workspace_shape(*state.latents.shape[1:])
            moved.workspace = torch.zeros(shape, dtype=torch.float64, device=self.device)
        return moved

    def begun(self, *arguments, **options) -> State:
        """`problems.state` for this implementation."""
        return self.state(problems.state(*arguments, **options))


def _compiled():
    if ops.implementation("cpu")[0] != "compiled C++":
        pytest.skip(ops.implementation("cpu")[1])
    return ops.step, ops.advance


def _emulated():
    if not emulated.compiler():
        pytest.skip("needs a C++ compiler")
    emulated.set_device(2, 2)
    space = getattr(torch.ops, emulated.NAMESPACE)
    return space.step, space.advance


def _any_device(seed: int) -> None:
    pick = random.Random(seed)
    order = pick.choice(["in order", "reversed", "random", "random"])
    emulated.set_device(
        *pick.choice(DEVICES), pick.random() < 0.7, order, seed, pick.choice(SHARED)
    )


def _interpreted():
    from tests.support.interpreted import interpreting

    def verb(name):
        def run(*arguments):
            with interpreting() as module:
                getattr(module, name)(*arguments)

        return run

    return verb("step"), verb("advance")


def _triton():
    if not triton_kernels.available()[0]:
        pytest.skip(triton_kernels.available()[1])
    return triton_kernels.step, triton_kernels.advance


REFERENCE = Implementation(
    "reference", lambda: (reference.step, reference.advance), CPU_SIZES, kernels=False, share=0.5
)
CPU = Implementation("C++", _compiled, CPU_SIZES, kernels=False)
EMULATED = Implementation("CUDA emulated", _emulated, CUDA_SIZES, share=1.5, vary=_any_device)
INTERPRETED = Implementation("Triton interpreted", _interpreted, TRITON_SIZES, share=0.2)
GPU = {"device": "cuda", "marks": (pytest.mark.gpu,)}
CUDA = Implementation("CUDA", lambda: (ops.step, ops.advance), [*CUDA_SIZES, 20480, 40008], **GPU)
TRITON = Implementation("Triton", _triton, TRITON_SIZES, share=0.5, **GPU)
ALL = (REFERENCE, CPU, EMULATED, INTERPRETED, CUDA, TRITON)
KERNELS = tuple(one for one in ALL if one.kernels)


def of_each(implementations: Sequence[Implementation] = ALL):
    """Parametrises a test by `implementation`."""
    return pytest.mark.parametrize(
        "implementation",
        [pytest.param(one, id=one.name, marks=one.marks) for one in implementations],
    )


def claim(examples: int, strategies: Callable, implementations: Sequence[Implementation] = ALL):
    """Makes ``body(implementation, rule, seed, **drawn)`` a test of each of them with each rule.

    Args:
        examples: how many of a rule; an implementation's share of them is drawn, two at least of a
            fast one, one of a slow one: the first of every strategy.
        strategies: implementation -> {name: strategy}.
    """

    def decorate(body: Callable) -> Callable:
        def test(implementation, rule):
            implementation.begin()

            def run(**drawn):
                implementation.vary(drawn["seed"])
                body(implementation, rule=rule, **drawn)

            run.__name__ = run.__qualname__ = body.__name__
            least = 2 if implementation.share >= 0.5 else 1
            count = max(round(examples * implementation.share), least)
            # Where an example takes long, a smaller one that fails too is not looked for.
            phases = [p for p in Phase if implementation.share >= 1 or p is not Phase.shrink]
            drawing = settings(max_examples=count, phases=phases)
            drawing(given(**strategies(implementation))(run))()

        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        return of_each(implementations)(pytest.mark.parametrize("rule", RULES)(test))

    return decorate


def assert_idle(implementation: Implementation, state: State) -> None:
    """Between launches: counters are back at zero, and no error waits for somebody else."""
    if state.workspace is not None:
        # Of a sample's head; behind it are the number of its launches and messages.
        words = state.workspace[:, 0].contiguous().view(torch.int32)[:, [0, 1, 3]]
        assert not bool(words.any()), words
    if implementation is EMULATED:
        assert emulated.counters()["error"] == 0
