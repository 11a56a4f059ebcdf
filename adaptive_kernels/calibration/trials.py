"""What a calibration tries: thresholds of a criterion, or plans by their number of calls."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..metrics import psnr
from ..rules.config import AdaptiveConfig
from ..rules.fills import coordinates
from ..rules.presets import plan_from_json, plan_to_json
from ..sampler import AdaptiveSampler
from ..sampling.network import network_dtype
from ..sampling.skipping import FewSkipsWarning
from .fit import Fit, fit
from .progress import CallBar
from .record import Recording, Samples, record, repeated
from .search import Search, response
from .store import Store, fingerprint

# Where the threshold of each criterion is looked for.
KNOBS = {"defect": (1e-6, 1.0), "third_order": (1e-4, 30.0), "released": (1e-5, 3.0)}
STARTS = 8
LEAST_DB, MOST_DB = (
    -100.0,
    100.0,
)  # the most is that of a sample that equals its full run, so that means stay finite
# How far, relative to its size, an output of the same model may be from the recorded one.
SAME_MODEL = 1e-3


class Bench:
    """The samples, their full runs and what a config makes of them."""

    def __init__(
        self,
        sampler: AdaptiveSampler,
        tuned: Samples,
        held: Samples,
        decode: Callable[[Tensor], Tensor],
        data_range: float,
        store: Store,
        bar: CallBar,
    ) -> None:
        self.sampler, self.tuned, self.held, self.store, self.bar = sampler, tuned, held, store, bar
        self.decode, self.data_range = decode, data_range
        self.table = sampler.table
        self.full = {id(tuned): self._record("tuned", tuned)}
        bar.expect(full=self.table.num_steps)
        self.full[id(held)] = self._record("held", held)
        bar.expect(full=0)
        self.shown = {id(s): self._show(self.full[id(s)].latents[-1], s) for s in (tuned, held)}
        if not all(bool(x.isfinite().all()) for x in self.shown.values()):
            raise ValueError("decode must return finite numbers, got NaN or Inf")
        # Figures of another decode() or data range are none of this calibration's.
        self.view = fingerprint(self.shown[id(tuned)], float(data_range))

    def _record(self, name: str, samples: Samples) -> Recording:
        stored = self.store.get_tensors(name, samples.noise.device)
        if stored is not None:
            recording = Recording(stored["latents"], stored["outputs"])
            self._check_model(recording, samples)
            return recording
        self.bar.say(f"full runs, {name} samples")
        recording = record(self.sampler, samples, self.bar.tick)
        if not bool(recording.latents.isfinite().all()):
            raise ValueError("model must return finite outputs; the full run gave NaN or Inf")
        self.store.put_tensors(name, {"latents": recording.latents, "outputs": recording.outputs})
        return recording

    def _check_model(self, recording: Recording, samples: Samples) -> None:
        """Raises unless the model answers one recorded step, in the middle, as it was written."""
        i = self.table.num_steps // 2
        again, before = (
            repeated(self.sampler, samples, recording, i).double(),
            recording.outputs[i].double(),
        )
        self.bar.tick()
        dtype = self.sampler.dtype or network_dtype(samples.model)
        tolerance = max(SAME_MODEL, 2 * torch.finfo(dtype).eps)
        off = ((again - before).norm() / before.norm().clamp(min=1e-30)).item()
        if not off <= tolerance:
            raise ValueError(
                f"model must be the one whose calibration {self.store.folder} holds, got another "
                f"output at step {i}, {100 * off:.2g} % off the recorded one"
            )

    def _show(self, latents: Tensor, samples: Samples) -> Tensor:  # [B, N] -> [B, ...]
        shown, batch = self.decode(latents.view(samples.noise.shape)), len(samples.noise)
        if not isinstance(shown, Tensor) or shown.dim() < 2 or len(shown) != batch:
            got = tuple(shown.shape) if isinstance(shown, Tensor) else type(shown).__name__
            raise ValueError(f"decode must return a tensor [{batch}, ...], got {got}")
        # A decode may return one buffer again and again.
        return shown.clone()

    def quality(self, latents: Tensor, samples: Samples) -> Tensor:  # [B, N] -> [B] dB
        db = psnr(self._show(latents, samples), self.shown[id(samples)], self.data_range)
        # A setting that makes the solver diverge is a bad one, not an error.
        return db.nan_to_num(LEAST_DB, MOST_DB, LEAST_DB).clamp(LEAST_DB, MOST_DB)

    def figures(self, latents: Tensor, nfe: float, samples: Samples) -> dict:
        db = self.quality(latents, samples).sort().values
        return {
            "nfe": float(nfe),
            "psnr_db": db.mean().item(),
            "psnr_db_worst_tenth": db[: math.ceil(len(db) / 10)].mean().item(),
        }

    def measure(self, config: AdaptiveConfig, samples: Samples) -> dict:
        sampler = AdaptiveSampler(
            self.table,
            config=config,
            guidance_scale=self.sampler.guidance_scale,
            dtype=self.sampler.dtype,
            guidance_calls=self.sampler.guidance_calls,
        )
        guided = self.sampler.guidance_scale is not None
        with warnings.catch_warnings():
            # Of a setting that is tried nobody needs to know.
            warnings.simplefilter("ignore", FewSkipsWarning)
            result = sampler(
                samples.model,
                samples.noise,
                samples.conditioning,
                samples.unconditional if guided else None,
                latents=samples.latents,
                seed=samples.seed,
                gather=not guided or samples.unconditional is not None,
                callback=lambda _: self.bar.tick(),
                progress=False,
            )
        nfe = result.nfe.double().mean().item()
        return self.figures(result.latents.flatten(1), nfe, samples)


class Thresholds:
    """The knob of an adaptive criterion."""

    def __init__(self, bench: Bench, base: AdaptiveConfig) -> None:
        self.bench, self.base, self.points = bench, base, {}
        self.least, self.most = (math.log(v) for v in KNOBS[base.criterion])

    def config(self, setting: float) -> AdaptiveConfig:
        return replace(self.base, threshold=math.exp(-setting))

    def point(self, setting: float) -> dict:
        """Figures on the tuned samples; a larger setting makes more calls."""
        if setting not in self.points:
            config = self.config(setting)
            name = f"{config} {self.bench.view}"
            if (figures := self.bench.store.get(name)) is None:
                self.bench.bar.say(f"threshold {config.threshold:.3g}")
                figures = self.bench.measure(config, self.bench.tuned)
                figures["threshold"] = config.threshold
                self.bench.store.put(name, figures)
            self.points[setting] = figures
        return self.points[setting]

    def range(self) -> tuple[float, float]:
        return -self.most, -self.least

    def expect(self, evaluations: int, calls: float) -> None:
        """Tells the bar what is left of the search."""
        self.bench.bar.expect(search=evaluations * calls)


class Plans:
    """Plans by their number of whole steps that call the network."""

    def __init__(self, bench: Bench, trials: int) -> None:
        self.bench, self.trials, self.points, self.plans, self.best = bench, trials, {}, {}, {}
        table, full = bench.table, bench.full[id(bench.tuned)]
        self.wholes = -(-table.num_steps // table.stages)
        gamma = bench.store.get("gamma")
        if gamma is None:
            bench.bar.say("the network's response")
            gamma = response(table, full, [self._fit(m) for m in _spread(self.wholes)]).tolist()
            bench.store.put("gamma", gamma)
        gamma = torch.tensor(gamma, dtype=torch.float64, device="cpu")
        self.search = Search(table, coordinates(table), full, gamma)

    def _fit(self, mask: Tensor) -> Fit:
        stages, steps = self.bench.table.stages, self.bench.table.num_steps
        refresh = mask.repeat_interleave(stages)[:steps]
        full = self.bench.full[id(self.bench.tuned)]
        return fit(self.bench.sampler, self.bench.tuned, full, refresh, self.bench.bar.tick)

    def _try(self, mask: Tensor) -> dict:
        """Figures and plan of a mask, fitted on the tuned samples."""
        name = "plan " + "".join(str(int(v)) for v in mask) + f" {self.bench.view}"
        if (figures := self.bench.store.get(name)) is None:
            result = self._fit(mask)
            figures = self.bench.figures(result.latents, result.plan.calls, self.bench.tuned)
            figures["plan"] = plan_to_json(result.plan)
            self.bench.store.put(name, figures)
        return figures

    def point(self, setting: int) -> dict:
        """The best plan of `setting` whole steps: local optima of the search, then real moves."""
        if setting in self.points:
            return self.points[setting]
        self.bench.bar.say(f"plans of {setting} calls")
        masks = self.search.optima(setting, STARTS)
        # What the network itself said about other numbers of calls.
        masks += [self.search.resized(_mask(self.best[s]), setting) for s in self.best]
        tried = {tuple(mask.tolist()): self._try(mask) for mask in masks}
        best = max(tried, key=lambda mask: tried[mask]["psnr_db"])
        budget, moved = self.trials, True
        while moved and budget > 0:
            moved = False
            for mask in self.search.moves(_mask(best)):
                if tuple(mask.tolist()) in tried:
                    continue
                if budget == 0:
                    break
                budget -= 1
                tried[tuple(mask.tolist())] = figures = self._try(mask)
                if figures["psnr_db"] > tried[best]["psnr_db"] + 0.02:
                    best, moved = tuple(mask.tolist()), True
                    break
        self.points[setting] = {k: v for k, v in tried[best].items() if k != "plan"}
        self.best[setting] = best
        self.plans[setting] = tried[best]["plan"]
        return self.points[setting]

    def config(self, setting: int) -> AdaptiveConfig:
        return AdaptiveConfig(criterion="plan", plan=plan_from_json(self.plans[setting]))

    def range(self) -> tuple[int, int]:
        return 1, self.wholes

    def expect(self, settings: Sequence[int]) -> None:
        """Tells the bar what is left of the search."""
        new = [setting for setting in settings if setting not in self.points]
        stages = self.bench.table.stages
        self.bench.bar.expect(search=sum(plan_cost(s * stages, self.trials) for s in new))

    def setting(self, calls: float) -> int:
        """The number of whole steps whose network calls come closest."""
        return min(math.floor(calls / self.bench.table.stages + 0.5), self.wholes)


def plan_cost(calls: float, trials: int) -> float:
    """Network calls to find the plan of so many: each mask tried on the network makes as many."""
    return calls * (STARTS + trials)


def _mask(steps: tuple[bool, ...]) -> Tensor:
    return torch.tensor(steps, device="cpu")


def _spread(wholes: int) -> list[Tensor]:
    """Four masks of every fourth step that together call all but the second."""
    masks = torch.zeros(4, wholes, dtype=torch.bool, device="cpu")
    masks[:, 0] = True
    for offset in range(4):
        masks[offset, 2 + offset :: 4] = True
    return list(masks)
