"""The laboratory at work: every method at every budget in every cell, a record stored a run."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from adaptive_kernels.metrics import psnr, ssim

from .method import Method
from .methods import adaptive_dpm, deepcache, ours, peers, planned
from .oracle import search as oracle
from .problem import Problem
from .records import Records, appearing
from .tune import POINTS, tune

METHODS = [
    *ours.METHODS,
    *planned.METHODS,
    *peers.METHODS,
    *adaptive_dpm.METHODS,
    *deepcache.METHODS,
    *oracle.METHODS,
]


class Cell(NamedTuple):
    """A solver with a number of steps."""

    solver: str
    steps: int
    problem: Problem

    @property
    def reference(self) -> Cell:
        """The cell whose full run this one is measured against."""
        return self._replace(problem=self.problem.reference)


class Entry(NamedTuple):
    """A row of the table: a method at the setting that a budget asks for."""

    cell: Cell
    method: str
    setting: float
    budget: float  # share of the steps, above 1 calls; 1 for the full run


def budget_calls(budget: float, steps: int) -> float:
    """Mean network calls of a budget: a share of the steps, or above 1 the calls themselves."""
    return budget * steps if budget <= 1 else min(budget, steps)


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{what}: {type(error).__name__}: {error}") from error


class Laboratory:
    """Runs what is not recorded yet.

    Args:
        records: where runs are stored.
        seeds: of the noise of the runs that are reported.
        tuning_seeds: of those that settings are tuned on, none of `seeds`.
        features: the module features, or None to go without LPIPS and features.
        progress: whether a bar is drawn on stderr.
        device: where those features are computed.

    Raises:
        ValueError: a seed is in both, or there is none.
    """

    def __init__(
        self,
        records: Records,
        seeds: Sequence[int],
        tuning_seeds: Sequence[int],
        features: ModuleType | None = None,
        progress: bool = True,
        device: str = "cpu",
    ) -> None:
        if not seeds or not tuning_seeds or set(seeds) & set(tuning_seeds):
            raise ValueError(
                "seeds and tuning_seeds must be given and share none, "
                f"got {list(seeds)} and {list(tuning_seeds)}"
            )
        self.records, self.features, self.progress = records, features, progress
        self.device = device
        self.seeds = list(dict.fromkeys(seeds))
        self.tuning_seeds = list(dict.fromkeys(tuning_seeds))
        self._warm = False

    def run(
        self, cells: Sequence[Cell], methods: Sequence[Method], shares: Sequence[float]
    ) -> list[Entry]:
        """Run and store what is missing; give the rows of the table, the full run's first."""
        entries = []
        methods = [ours.FULL, *(m for m in methods if m.name != ours.FULL.name)]
        expected = [self._expected(method, shares) for method in methods]
        format = "{l_bar}{bar}| {n_fmt}/{total_fmt} runs [{elapsed}<{remaining}]"
        total = len(cells) * sum(expected)
        with tqdm(total=total, disable=not self.progress, bar_format=format) as bar:
            for i, cell in enumerate(cells):
                references: dict[int, Tensor] = {}
                for seed in (*self.seeds, *self.tuning_seeds):
                    self._limit(cell, seed, bar)
                if cell.problem.exact is not None:
                    self._full(cell.reference, {}, bar)
                for j, method in enumerate(methods):
                    bar.set_description(f"{cell.problem.name} {method.name}", refresh=False)
                    # Only an estimate before the settings are known.
                    ahead = sum(expected[j:]) + (len(cells) - i - 1) * sum(expected)
                    bar.total = bar.n + ahead
                    bar.refresh()
                    for share, setting in self._settings(cell, method, shares, bar):
                        entries.append(Entry(cell, method.name, setting, share))
                        if method is ours.FULL:
                            self._full(cell, references, bar)
                            continue
                        for seed in self.seeds:
                            self._ensure(cell, method, setting, seed, references)
                            bar.update()
            bar.total = bar.n
            bar.refresh()
        return entries

    def _limit(self, cell: Cell, seed: int, bar: tqdm | None = None) -> Tensor | None:
        """The images that more and more steps lead to, made once for all solvers that share them.

        None where nobody knows them.
        """
        problem = cell.problem.reference
        if not problem.limit:
            return None
        key = (problem.limit_name, "limit", 0.0, seed)
        if not self.records.names(*key):
            if bar is not None:
                bar.set_description(f"{problem.limit_name}, seed {seed}")
            batch = problem.batch(seed)
            with _named(f"the limit, {problem.limit_name}, failed at seed {seed}"):
                parts = [(w, ours.sampled(ours.NEVER)(part, batch)) for w, part in problem.limit]
                images = problem.decode(sum(w * outcome.latents.cpu() for w, outcome in parts))
            self.records.save(*key, arrays={"images": images.float().clamp(-1, 1)})
        return self.records.load(*key, only=["images"])["images"]

    def _full(self, cell: Cell, references: dict[int, Tensor], bar: tqdm) -> None:
        for seed in (*self.seeds, *self.tuning_seeds):
            self._ensure(cell, ours.FULL, float(cell.steps), seed, references)
            bar.update()

    def _expected(self, method: Method, shares: Sequence[float]) -> int:
        if method is ours.FULL:
            return len(self.seeds) + len(self.tuning_seeds)
        tuning = (POINTS + len(shares)) * len(self.tuning_seeds) if method.knob else 0
        return tuning + len(shares) * len(self.seeds)

    def _settings(
        self, cell: Cell, method: Method, shares: Sequence[float], bar: tqdm
    ) -> list[tuple[float, float]]:  # (share, setting)
        if method is ours.FULL:
            return [(1.0, float(cell.steps))]
        calls = {share: budget_calls(share, cell.steps) for share in shares}
        if method.knob is None:
            return [
                (s, float(x)) for s, n in calls.items() for x in method.settings(cell.problem, n)
            ]
        if method.settings is not None:
            # Beside a knob they only tell where the method does not apply.
            calls = {s: n for s, n in calls.items() if method.settings(cell.problem, n)}
        if not calls:
            return []
        path = self.records.tuning_path(cell.problem.name, method.name)
        known = json.loads(path.read_text()) if path.is_file() else {}

        def nfe_of(setting: float) -> float:
            tried = known.setdefault(f"{setting:.6g}", {})
            for seed in self.tuning_seeds:
                if str(seed) not in tried:
                    nfe = self._sample(cell, method, setting, seed)["nfe"]
                    tried[str(seed)] = nfe.mean().item()
                    with appearing(path) as unfinished:
                        unfinished.write_text(json.dumps(known, indent=2) + "\n")
                bar.update()
            return sum(tried[str(seed)] for seed in self.tuning_seeds) / len(self.tuning_seeds)

        found = tune(nfe_of, method.knob, list(calls.values()))
        return [(share, found[n]) for share, n in calls.items()]

    def _ensure(
        self, cell: Cell, method: Method, setting: float, seed: int, references: dict[int, Tensor]
    ) -> None:
        key = (cell.problem.name, method.name, setting, seed)
        names = self.records.names(*key)
        known = not cell.problem.reference.limit or "limit" in names
        if known and ("lpips" in names or (names and self.features is None)):
            return
        # A record made without the feature weights, or the limit, is completed from its images.
        record = self.records.load(*key) if names else self._sample(cell, method, setting, seed)
        images = record["images"].float()
        exact = method is ours.FULL and cell.problem.exact is None
        if not exact and seed not in references:
            full = (cell.problem.reference.name, ours.FULL.name, float(cell.steps), seed)
            references[seed] = self.records.load(*full, only=["images"])["images"]
        reference = images if exact else references[seed]
        if not names:
            record |= {"psnr": psnr(images, reference), "ssim": ssim(images, reference)}
            if not exact:
                record["images"] = images.half()
        if not known:
            record["limit"] = psnr(images, self._limit(cell, seed))
        if self.features is not None and "lpips" not in names:
            record["lpips"] = self.features.lpips(images, reference, device=self.device)
            record["features"] = self.features.efficientnet_features(images, self.device).half()
        self.records.save(*key, arrays=record)

    @torch.no_grad()
    def _sample(self, cell: Cell, method: Method, setting: float, seed: int) -> dict[str, Tensor]:
        problem = cell.problem
        batch = problem.batch(seed)
        if not self._warm:
            # The first calls prepare the network's kernels; that is no method's time.
            ours.sampled(ours.NEVER, 2)(problem, batch)
            self._warm = True
        with (
            _named(f"{method.name} at {setting:g} failed on {problem.name}, seed {seed}"),
            warnings.catch_warnings(),
        ):
            # Counted in the table instead.
            warnings.filterwarnings("ignore", "the latents of samples", RuntimeWarning)
            start = time.perf_counter()
            outcome = method.make(setting)(problem, batch)
            latents = outcome.latents.cpu()
            wall_s = time.perf_counter() - start
        # NaN and Inf stand as grey, so that a failed sample counts as a bad one.
        images = problem.decode(latents.nan_to_num(0, 0, 0)).float().nan_to_num(0, 0, 0)
        record = {
            "nfe": outcome.nfe.double(),
            "labels": batch.labels,
            "nonfinite": ~latents.flatten(1).isfinite().all(1),
            "wall_s": torch.tensor(wall_s, dtype=torch.float64),
            "images": images.clamp(-1, 1),
        }
        traces = {"refreshed": outcome.refreshed, "score": outcome.score}
        record |= {name: trace for name, trace in traces.items() if trace is not None}
        return {name: x.detach().cpu() for name, x in record.items()}
