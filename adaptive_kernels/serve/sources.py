"""What requests of a file are sampled with: the shipped model, or a local diffusers pipeline."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..demo import model as demo
from ..engine import Engine, Request, Sample
from ..rules.config import AdaptiveConfig
from .lines import Line

# Fields of a line that are those of `Request`.
_OWN = ("seed", "guidance_scale", "threshold")
STEPS = 50


@dataclass(frozen=True)
class Source:
    """An engine and how a line becomes a request of it.

    request: Raises TypeError, ValueError, OSError naming the field. image: of a sample, PIL.
    settings: what images depend on besides their requests. folder: that pictures are looked for in.
    """

    engine: Any
    request: Callable[[Line], Request]
    image: Callable[[Sample], Any]
    settings: dict[str, Any]
    folder: Path | None = None

    def run(self, requests: Iterable[Request], progress: bool) -> Iterator[Sample]:
        return self.engine.run(requests, on_error="yield", progress=progress)


def shipped(
    folder: Path,
    steps: int | None,
    slots: int,
    config: AdaptiveConfig,
    guidance_scale: float | None,
    device: str,
) -> Source:
    """The shipped Fashion-MNIST model: lines with `class`, and `image` with `strength`.

    folder: that images are looked for in.
    """
    model = demo.load_demo_model(device=device)
    steps = steps or config.num_inference_steps or STEPS
    scale = 2.0 if guidance_scale is None else guidance_scale
    engine = Engine(
        model,
        demo.demo_scheduler(),
        steps,
        slots=slots,
        shape=demo.SAMPLE_SHAPE,
        config=config,
        guidance_scale=scale,
        unconditional={"class_labels": _label(demo.NULL_LABEL, device)},
    )

    def request(line: Line) -> Request:
        fields = dict(line.fields)
        own = {name: fields.pop(name) for name in (*_OWN, "strength") if name in fields}
        label = _class(fields.pop("class", None))
        image = fields.pop("image", None)
        if fields:
            known = ", ".join(("id", *_OWN, "class", "image", "strength"))
            raise ValueError(f"{next(iter(fields))} is no field of a line; it takes {known}")
        if image is not None:
            own["latents"] = _picture(folder, image).to(device)
        return Request(line.id, conditioning={"class_labels": _label(label, device)}, **own)

    settings = {"model": "shipped", "scheduler": "DDIMScheduler", "num_inference_steps": steps}
    return Source(engine, request, _gray, settings | {"guidance_scale": scale}, folder)


def pipeline(
    folder: Path,
    steps: int | None,
    slots: int,
    config: AdaptiveConfig,
    guidance_scale: float | None,
    device: str,
    dtype: torch.dtype | None,
    variant: str | None,
    size: tuple[int | None, int | None],
) -> Source:
    """A local folder that `save_pretrained` has written: lines with `prompt` and the like.

    dtype: that the weights are loaded in, None: float32. variant: of the weights' files, such as
    "fp16". size: height and width in pixels, None the pipeline's own.

    Raises: OSError where there is no pipeline in the folder.
    """
    from diffusers import DiffusionPipeline

    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"model must be a folder of a diffusers pipeline, got {folder} without model_index.json"
        )
    options: dict[str, Any] = {} if dtype is None else {"torch_dtype": dtype}
    if variant is not None:
        options["variant"] = variant
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **options).to(device)
    given = {name: n for name, n in zip(("height", "width"), size, strict=True) if n is not None}
    engine = Engine.from_pipeline(
        pipe, steps, slots=slots, config=config, guidance_scale=guidance_scale, **given
    )

    def request(line: Line) -> Request:
        fields = dict(line.fields)
        own = {name: fields.pop(name) for name in _OWN if name in fields}
        return Request(line.id, conditioning=fields, **own)

    settings = {"model": str(folder.resolve()), "scheduler": type(pipe.scheduler).__name__}
    settings |= {"num_inference_steps": engine.engine.table.num_steps, **given}
    settings |= {"guidance_scale": guidance_scale, "dtype": str(dtype), "variant": variant}
    settings["files"] = _digest(folder)
    return Source(engine, request, lambda sample: sample.image, settings)


def _digest(folder: Path) -> str:
    """What another content of a folder changes: names, sizes and times of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _label(label: int, device: str) -> Tensor:
    return torch.tensor([label], dtype=torch.int64, device=device)


def _class(value: Any) -> int:
    names = [name.lower() for name in demo.CLASS_NAMES]
    if isinstance(value, str) and value.lower() in names:
        return names.index(value.lower())
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < demo.NUM_CLASSES:
        return value
    raise ValueError(
        f"class must be 0 to {demo.NUM_CLASSES - 1} or one of {', '.join(demo.CLASS_NAMES)}, "
        f"got {value!r}"
    )


def _picture(folder: Path, name: Any) -> Tensor:
    """[1, 32, 32] float32 from -1 to 1, of a picture of any size."""
    from PIL import Image

    if not isinstance(name, str):
        raise TypeError(f"image must be the path of a picture, got {name!r}")
    channels, *size = demo.SAMPLE_SHAPE
    with Image.open(folder / name) as picture:
        gray = picture.convert("L").resize(tuple(reversed(size)))
        values = torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8)
    return values.view(channels, *size).float() / 127.5 - 1


def _gray(sample: Sample) -> Any:
    from PIL import Image

    values = ((sample.latents[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.cpu().numpy())
