"""One run of an engine as an iterator: its bar, its record, what is told on the way."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tqdm.auto import tqdm

from ..rules.config import AdaptiveConfig
from ..sampling.skipping import Calls, wants_skips, warn_of_few_skips
from .request import Entry, Queue
from .sample import Sample
from .serving import serve
from .slots.batch import Batch
from .statistics import Record


@torch.no_grad()
def samples(
    batch: Batch,
    queue: Queue,
    stopped: Callable[[], bool],
    *,
    ordered: bool,
    on_error: str,
    progress: bool,
    gaps: bool,
) -> Iterator[Any]:
    """The results of a queue, after a None that says that the run has begun.

    Args:
        batch: whatever stands in it is lost. stopped: asked before every tick; where the run ends
            so, the batch's buffers are freed. The rest as `Engine.run` has it.
    """
    record = Record(batch.slots)
    batch.clear(record)
    bar, calls = None, Calls()

    def failed(entry: Entry, error: Exception) -> Sample:
        record.failed += 1
        return Sample(entry.id, entry.number, entry.item, error=error)

    try:
        yield None
        bar = tqdm(total=queue.size, unit="sample", disable=not progress)
        serving = serve(
            *(queue, batch, batch.slots),
            **{"ordered": ordered, "on_error": on_error, "failed": failed, "stopped": stopped},
        )
        for sample in serving:
            if sample is None:
                if gaps:
                    yield None
                continue
            if sample.nonfinite:
                record.nonfinite += 1
                _warn_of_nonfinite(sample, record)
            if record.done:
                steps = batch.solvers.table.num_steps
                note = f"NFE {record.calls / record.done:.1f} of {steps}"
                bar.set_postfix_str(note, refresh=False)
            bar.update()
            if sample.error is None:
                _add(calls, batch.config, sample)
            yield sample
        _warn_of_few_skips(batch, calls)
    finally:
        if bar is not None:
            bar.close()
        record.close()
        if stopped():
            batch.free()


def _add(calls: Calls, config: AdaptiveConfig, sample: Sample) -> None:
    """Counts a sample, if its request wants calls skipped."""
    threshold = None if sample.request is None else sample.request.threshold
    if not sample.nonfinite and wants_skips(config, threshold):
        calls.rows += len(sample.refreshed)
        calls.made += sample.nfe
        calls.score = sample.score


def _warn_of_few_skips(batch: Batch, calls: Calls) -> None:
    """Says once per engine that its samples skip next to nothing, and why."""
    if not batch.told:
        batch.told = warn_of_few_skips(batch.config, batch.solvers.table, calls, 4)


def _warn_of_nonfinite(sample: Sample, record: Record) -> None:
    """Warns of the first one of a run: a network that gives NaN may do so for all."""
    if record.nonfinite == 1:
        warnings.warn(
            f"the latents of request {sample.id!r} hold NaN or Inf (sample.nonfinite); of further "
            "ones report() tells the number",
            RuntimeWarning,
            stacklevel=4,
        )
