"""The plain loop, and what every executor is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..sampling.network import Look, NetworkCall
from ..sampling.start import Start
from ..sampling.state import State


@dataclass(frozen=True)
class Job:
    """One sampling before its first step, the network, and what was seen of its modules."""

    network: NetworkCall
    start: Start
    gather: bool
    callback: Callable[[int, State], None] | None  # (ticks, state) after every tick
    look: Look = field(default_factory=Look)


def eager(job: Job, bar: Any) -> State:
    """The plain loop, on any device; reads the samples' steps once per tick."""
    state, network = State.of(job.start, shared=True), job.network
    steps, batch = len(state.rows), state.latents.shape[1]
    tick = 0
    while len(unfinished := (state.index < steps).nonzero()[:, 0]):
        partial = unfinished if job.gather and len(unfinished) < batch else None
        output = network(state.model_input, state.timestep, partial)
        state.advance(output, partial)
        tick += 1
        bar.update(int(state.index.sum()) - bar.n)
        if job.callback is not None:
            job.callback(tick, state)
    return state
