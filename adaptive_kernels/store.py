"""What a calibration has done so far, in a folder, so that an interrupted one goes on."""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils import _pytree as pytree

NAME = "calibration.json"


def fingerprint(*things) -> str:
    """A hash of tensors and plain values that decide what a calibration measures."""
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(things):
        if isinstance(leaf, Tensor):
            leaf = leaf.detach().cpu().contiguous()
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            digest.update(leaf.flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()[:16]


class Store:
    """Values and tensors by name; in memory alone where `folder` is None.

    Raises: OSError where the folder cannot be written; ValueError where it holds the calibration of
    something else, which stays as it is.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder, self.key = folder, key
        self.values: dict = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / NAME).is_file():
            try:
                found = json.loads((folder / NAME).read_text())
                same = found["key"] == key
                self.values = dict(found["values"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"out must hold a readable {NAME}, got {error}") from error
            if not same:
                raise ValueError(
                    f"out must be empty or hold this calibration, got that of another model input, "
                    f"solver or guidance in {folder}"
                )
        else:
            self._write()

    def get(self, name: str):
        """The value stored under `name`, or None."""
        return self.values.get(name)

    def put(self, name: str, value) -> None:
        """Keep a JSON value."""
        self.values[name] = value
        if self.folder is not None:
            self._write()

    def get_tensors(self, name: str, device: torch.device) -> dict[str, Tensor] | None:
        """The tensors stored under `name`, or None."""
        if self.folder is None:
            return self.tensors.get(name)
        path = self.folder / f"{name}-{self.key}.safetensors"
        return load_file(path, device=str(device)) if path.is_file() else None

    def put_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors."""
        if self.folder is None:
            self.tensors[name] = tensors
            return
        path = self.folder / f"{name}-{self.key}.safetensors"
        hidden = path.with_suffix(".unfinished")
        save_file({key: value.contiguous() for key, value in tensors.items()}, hidden)
        os.replace(hidden, path)

    def _write(self) -> None:
        write_json(self.folder / NAME, {"key": self.key, "values": self.values})


def write_json(path: Path, value) -> None:
    """Write JSON so that the file is either the old one or the new one."""
    hidden = path.with_name(f".{path.name}.unfinished")
    hidden.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(hidden, path)
