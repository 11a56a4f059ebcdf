"""A diffusers model folder as a problem of the laboratory."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .problem import SOLVERS, Batch, Problem, make_scheduler, on_device

OWN = "own"
# Of a model with more classes, this many, evenly spread, take part.
CLASSES = 10
DECODED_AT_ONCE = 4
EMBEDDED_TOKENS = 77


@dataclass(frozen=True)
class _Loaded:
    network: torch.nn.Module
    scheduler: Any
    pipeline: Any  # None for a bare network


@dataclass(frozen=True)
class _Groups:
    """What the samples of each group are conditioned on: tensors [G, ...]."""

    names: tuple[str, ...]
    conditioning: dict[str, Any]
    unconditional: dict[str, Any] | None
    guidance_scale: float | None


class Network(torch.nn.Module):
    """A diffusers network as the sampler calls it: tensors in, the tensor of its output out."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, model_input: Tensor, timestep: Tensor, **conditioning: Any) -> Tensor:
        """model_input: [rows, C, H, W]; timestep: [rows]. Without a learned variance's channels."""
        output = self.network(model_input, timestep, **conditioning, return_dict=False)[0]
        return output[:, : model_input.shape[1]]


def problem_from_folder(
    folder: Path,
    solver: str = OWN,
    steps: int = 50,
    samples_per_class: int = 4,
    guidance_scale: float | None = None,
    prompts: Sequence[str] = (),
    device: str = "cpu",
) -> Problem:
    """The model of a folder under its own scheduler or one of the laboratory's solvers.

    Either a pipeline's folder (model_index.json) or that of a bare UNet2DModel or
    UNet2DConditionModel (config.json) with a scheduler in scheduler/ in it or beside it. What the
    samples are conditioned on:

    - text to image (a pipeline with encode_prompt): `prompts`, a group each;
    - classes (UNet2DModel with num_class_embeds, DiT): ten of them, evenly spread. A UNet2DModel
      is guided only where a scale is given, and its last class then stands for none;
    - a bare UNet2DConditionModel: zero embeddings without guidance, which is enough for calls and
      times and says nothing about a text model's quality;
    - nothing otherwise: one group.

    Clipping, thresholding and learned variance are switched off in the scheduler, as they are not
    linear in the latents; a laboratory's solver gets trailing timesteps too.

    Args:
        solver: "own" or one of SOLVERS, whose class takes the configuration of the own one.
        samples_per_class: samples of each group.
        guidance_scale: None takes 7.5 for text, 4 for DiT and none otherwise.
        device: where the network is; all else of a pipeline stays on the CPU.

    Raises:
        ValueError: the folder holds no such model, or solver, guidance_scale or prompts do not
            fit it.
    """
    folder = Path(folder)
    loaded = _load(folder)
    groups = _groups_of(folder, guidance_scale, tuple(prompts))
    config = loaded.network.config
    size = config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    vae = getattr(loaded.pipeline, "vae", None) or getattr(loaded.pipeline, "vqvae", None)

    def batch(seed: int) -> Batch:
        labels = torch.arange(len(groups.names)).repeat_interleave(samples_per_class)
        shape = (len(labels), config.in_channels, *size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

        def rows(tree: dict) -> dict:
            return pytree.tree_map(lambda x: x[labels], tree)

        unconditional = None if groups.unconditional is None else rows(groups.unconditional)
        return Batch(noise, rows(groups.conditioning), unconditional, labels, seed)

    def decode(latents: Tensor) -> Tensor:
        if vae is None:
            return latents.clamp(-1, 1)
        latents = latents / vae.config.scaling_factor
        latents = latents + (getattr(vae.config, "shift_factor", None) or 0)
        parts = latents.to(vae.dtype).split(DECODED_AT_ONCE)
        return torch.cat([vae.decode(x, return_dict=False)[0] for x in parts]).float().clamp(-1, 1)

    scheduler = _scheduler(loaded.scheduler, solver)
    return Problem(
        f"{solver}-{steps}",
        on_device(Network(loaded.network), device),
        lambda: copy.deepcopy(scheduler),
        steps,
        groups.guidance_scale,
        batch,
        groups.names,
        decode,
    )


def fingerprint(folder: Path) -> list[tuple[str, int, int]]:
    """Path, size in bytes and time of change in nanoseconds of every file in a model's folder."""
    found = [(p, p.stat()) for p in sorted(Path(folder).resolve().rglob("*")) if p.is_file()]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found]


# Every cell of a run shares one model; two would not fit in memory.
@functools.lru_cache(maxsize=1)
def _load(folder: Path) -> _Loaded:
    diffusers.utils.logging.disable_progress_bar()
    if (folder / "model_index.json").is_file():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        scheduler = pipeline.scheduler
    else:
        pipeline, network = None, _component(folder, [folder, folder / "unet"], "config.json")
        places = [folder / "scheduler", folder.parent / "scheduler", folder]
        scheduler = _component(folder, places, "scheduler_config.json")
    known = (
        diffusers.UNet2DModel,
        diffusers.UNet2DConditionModel,
        diffusers.DiTTransformer2DModel,
    )
    if not isinstance(network, known):
        raise ValueError(
            f"model must hold one of {', '.join(k.__name__ for k in known)}, "
            f"got {type(network).__name__} in {folder}"
        )
    if pipeline is not None:
        pipeline.set_progress_bar_config(disable=True)
        for part in ("vae", "vqvae", "text_encoder", "text_encoder_2"):
            if getattr(pipeline, part, None) is not None:
                getattr(pipeline, part).eval().requires_grad_(False)
    return _Loaded(network.eval().requires_grad_(False), scheduler, pipeline)


def _component(folder: Path, places: Sequence[Path], name: str) -> Any:
    for place in places:
        if (place / name).is_file():
            kind = json.loads((place / name).read_text()).get("_class_name", "")
            if not hasattr(diffusers, kind):
                raise ValueError(f"{place / name} must name a class of diffusers, got {kind!r}")
            return getattr(diffusers, kind).from_pretrained(place, local_files_only=True)
    raise ValueError(
        f"model must be a folder with model_index.json, or with config.json and scheduler/, and "
        f"{name} was found in none of {', '.join(map(str, places))}, got {folder}"
    )


@functools.lru_cache(maxsize=1)
def _groups_of(folder: Path, scale: float | None, prompts: tuple[str, ...]) -> _Groups:
    loaded = _load(folder)
    network, pipeline = loaded.network, loaded.pipeline
    text = hasattr(pipeline, "encode_prompt")
    if bool(prompts) != text:
        expected = "name prompts for a text-to-image model" if text else "be left out here"
        raise ValueError(f"prompts must {expected}, got {len(prompts)}")
    if text:
        return _text(pipeline, 7.5 if scale is None else scale, prompts)
    dit = isinstance(network, diffusers.DiTTransformer2DModel)
    classes = network.config.num_embeds_ada_norm if dit else network.config.num_class_embeds
    scale = 4.0 if dit and scale is None else scale
    guided = scale not in (None, 1)
    if guided and not classes:
        raise ValueError(f"guidance_scale must be left out for an unconditional model, got {scale}")
    if isinstance(network, diffusers.UNet2DConditionModel):
        width = network.config.cross_attention_dim
        empty = torch.zeros(1, EMBEDDED_TOKENS, width, dtype=network.dtype)
        return _Groups(("samples",), {"encoder_hidden_states": empty}, None, None)
    if not classes:
        return _Groups(("samples",), {}, None, None)
    null = classes if dit else classes - 1
    count = null if guided or dit else classes
    labels = torch.linspace(0, count - 1, min(count, CLASSES)).round().long()
    named = {number: name for name, number in getattr(pipeline, "labels", {}).items()}
    names = tuple(named.get(c, f"class {c}") for c in labels.tolist())
    unconditional = {"class_labels": torch.full_like(labels, null)} if guided else None
    return _Groups(names, {"class_labels": labels}, unconditional, scale if guided else None)


@torch.no_grad()
def _text(pipeline: Any, scale: float, prompts: tuple[str, ...]) -> _Groups:
    guided = scale != 1
    positive, negative, *pooled = pipeline.encode_prompt(
        prompt=list(prompts),
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=guided,
    )
    halves = [{"encoder_hidden_states": positive}, {"encoder_hidden_states": negative}]
    if pooled:  # SDXL
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        numbers = [side, side, 0, 0, side, side]
        time_ids = torch.tensor([numbers] * len(prompts), dtype=positive.dtype)
        for half, embeds in zip(halves, pooled, strict=True):
            half["added_cond_kwargs"] = {"text_embeds": embeds, "time_ids": time_ids}
    return _Groups(prompts, halves[0], halves[1] if guided else None, scale if guided else None)


def _scheduler(own: Any, solver: str) -> Any:
    """The own scheduler, or a laboratory's solver with its configuration, made linear."""
    flow = type(own).__name__.startswith("FlowMatch")
    able = (OWN, "flow") if flow else (OWN, *(s for s in SOLVERS if s != "flow"))
    if solver not in able:
        raise ValueError(f"solver must be one of {', '.join(able)} with this model, got {solver!r}")
    kind = type(own) if solver == OWN else type(make_scheduler(solver))
    changes = {"clip_sample": False, "thresholding": False}
    if solver != OWN:
        changes["timestep_spacing"] = "trailing"
    takes = inspect.signature(kind.__init__).parameters
    scheduler = kind.from_config(own.config, **{k: v for k, v in changes.items() if k in takes})
    if str(scheduler.config.get("variance_type", "")).startswith("learned"):
        # Kept even by a class that has no such parameter.
        scheduler.register_to_config(variance_type="fixed_small")
    return scheduler
