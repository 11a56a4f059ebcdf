"""A network captured in a CUDA graph, over buffers of its own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..sampling.network import Look, NetworkCall, Rows
from ..sampling.start import Start
from ..sampling.state import State
from .guard import CaptureError, Guard, is_compiled, where
from .identity import identity

WARM_UP = 3  # calls before a capture: handles, autotuning, kernels loaded when first used


class CapturedNetwork:
    """One call of a network as a graph: it reads the state's input and writes an output of its own.

    The buffers stand still; new latents, conditioning, thresholds, guidance scales and seeds are
    copied into them between launches, and counters are set back. What must not change is the
    `signature`.

    Args:
        runtime: of the state's device (`runtime.Runtime`).
        network: what is captured, with conditioning in buffers of its own.
        start: what its state takes in first.

    Raises: CaptureError saying where and why; then nothing of it is left.
    """

    def __init__(self, runtime: Any, network: NetworkCall, start: Start):
        self.runtime = runtime
        self._last = None
        try:
            # Buffers made under inference mode could not be written outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self.state, self.network = State.of(start), network.fixed()
            with _autocast_without_cache(start.latents.device.type):
                self._warm_up()
                with _as_capture_error("failed while it was captured"):
                    self.graph = runtime.capture(self._call)
        except BaseException:
            runtime.release()
            raise

    @property
    def output(self) -> Tensor:
        """[B or 2B, N]: where the graph leaves the model output, in its own memory."""
        return self.graph.result

    def load(self, network: NetworkCall, start: Start) -> None:
        """Takes another call of the same signature in, once the last launch is over."""
        if self._last is not None:
            self.runtime.follow(self._last)
        self.network.load(network)
        self.state.take(start)

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """Around what works on the buffers: the next `load` comes after it, on whatever stream."""
        yield
        self._last = self.runtime.mark()

    @property
    def last(self) -> Any:
        """A mark after the last work on the buffers; None before the first."""
        return self._last

    def memory(self) -> dict[str, int | None]:
        """Bytes on the device: the network's activations, and the buffers around them.

        None where torch's allocator does not tell.
        """
        return {
            "activations": self.graph.bytes(),
            "buffers": self.state.bytes() + self.network.bytes(),
        }

    def settle(self) -> None:
        """Waits for the last launch."""
        if self._last is not None:
            self._last.wait()
        self._last = None

    def close(self) -> None:
        self.settle()
        self.graph.close()
        self.runtime.release()

    def _call(self) -> Tensor:
        return self.network(self.state.model_input, self.state.timestep, None)

    def _warm_up(self) -> None:
        with _as_capture_error("failed while it was warmed up"), self.runtime.on_stream():
            guard = Guard(self.state.latents.device)
            if is_compiled(self.network.model):
                # Compiled code draws numbers where a guard does not see it.
                self._call()
                if guard.draws(self._call)[1]:
                    raise CaptureError("the network draws random numbers")
            else:
                with guard:
                    self._call()
            for _ in range(1, WARM_UP):
                output = self._call()
            # Its kernels are loaded here too; a launch begins with other values.
            self.state.advance(output)
        self.runtime.synchronize()


def signature(network: NetworkCall, start: Start, look: Look) -> tuple:
    """Two calls of one signature are served by one capture.

    look: at the modules that the network uses.
    """
    numerics = _numerics(start.latents.device.type)
    return _call_signature(network, look), start.signature(), numerics


def _call_signature(network: NetworkCall, look: Look) -> tuple:
    """What a captured call fixes: the model and what it uses, shapes, plain values."""
    conditions = [
        leaf if isinstance(leaf, Rows) else identity(leaf, look) for leaf in network.conditions()
    ]
    model = identity(network.model, look)
    return model, network.shape, network.guided, network.structure, conditions


def _numerics(device: str) -> tuple:
    """What torch was told about arithmetic: a graph keeps what held when it was captured."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        torch.are_deterministic_algorithms_enabled(),
        _precision(),
        (cudnn.enabled, cudnn.deterministic, cudnn.benchmark),
        (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()),
        (cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()),
    )


def _precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set in torch's newer way too, which it then does not tell
        return None


@contextlib.contextmanager
def _autocast_without_cache(device: str) -> Iterator[None]:
    """Casts that are cached outside a graph would not be in it."""
    before = torch.is_autocast_cache_enabled()
    # Compiled code is compiled again where the flag differs.
    torch.set_autocast_cache_enabled(before and not torch.is_autocast_enabled(device))
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextlib.contextmanager
def _as_capture_error(what: str) -> Iterator[None]:
    try:
        yield
    except CaptureError as error:
        raise CaptureError(f"{error}, at {where(error)}") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise CaptureError(
            f"the network {what}: {type(error).__name__}: {error}, at {where(error)}"
        ) from error
