"""The runs on disk: one file each, there whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import diffusers
import numpy as np
import torch
from torch import Tensor

from adaptive_kernels import __version__
from adaptive_kernels.files import replacing


class Records:
    """The runs of one model under one set of options.

    `<out>/records-<versions>-<digest of the options>/<cell>/<method>-<setting>-<seed>.npz` holds,
    for B samples, nfe [B], psnr, limit, ssim, lpips [B], features [B, 1280], images [B, C, H, W],
    refreshed and score [T, B], labels [B], nonfinite [B] and the run's wall_s.

    Args:
        out: the folder, made if missing.
        options: what, beside the versions, the records depend on; kept there as options.json.
    """

    def __init__(self, out: Path, options: dict) -> None:
        versions = {"adaptive_kernels": __version__, "diffusers": diffusers.__version__}
        text = json.dumps({**options, **versions, "torch": torch.__version__}, indent=2) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.folder = out / f"records-{__version__}-torch-{torch.__version__}-{digest}"
        with appearing(self.folder / "options.json") as path:
            path.write_text(text)

    def path(self, cell: str, method: str, setting: float, seed: int) -> Path:
        return self.folder / cell / f"{_file_name(method)}-{setting:.6g}-{seed}.npz"

    def names(self, *key) -> list[str]:
        """What the record of (cell, method, setting, seed) holds; nothing where there is none."""
        path = self.path(*key)
        if not path.is_file():
            return []
        with np.load(path) as file:
            return file.files

    def load(self, *key, only: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The arrays of a record, those of `only` it has; None: all."""
        with np.load(self.path(*key)) as file:
            names = file.files if only is None else [name for name in only if name in file.files]
            return {name: torch.from_numpy(file[name]) for name in names}

    def save(self, *key, arrays: dict[str, Tensor]) -> None:
        with appearing(self.path(*key)) as path, path.open("wb") as file:
            np.savez_compressed(file, **{name: x.numpy() for name, x in arrays.items()})

    def tuning_path(self, cell: str, method: str) -> Path:
        """Mean NFE of every setting and seed tried: `{setting: {seed: nfe}}`."""
        return self.folder / cell / f"{_file_name(method)}.tuning.json"


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A path beside `path`, whose folder is made; renamed to it when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        yield unfinished


def _file_name(method: str) -> str:
    return "".join(c if c.isalnum() or c in "+_." else "_" for c in method)
