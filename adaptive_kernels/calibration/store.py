"""What a calibration has done so far, in a folder, so that an interrupted one goes on."""

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from ..files import replacing, write_json

NAME = "calibration.json"
RESULTS = ("config.json", "report.json", "curve.png")


def fingerprint(*things) -> str:
    """A hash of pytrees of tensors, arrays and plain values, and of the names in them."""
    digest = hashlib.sha256()
    leaves = [
        (pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(things)[0]
    ]
    for name, leaf in sorted(leaves, key=lambda pair: pair[0]):
        # An object's address is another one in every process.
        label, body = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(leaf)), b""
        if isinstance(leaf, Tensor):
            leaf = leaf.detach().cpu().contiguous()
            label = f"{leaf.dtype}{tuple(leaf.shape)}"
            body = leaf.flatten().view(torch.uint8).numpy().tobytes()
        elif hasattr(leaf, "tobytes"):
            label, body = f"{leaf.dtype}{leaf.shape}", leaf.tobytes()
        digest.update(f"{name} {label} ".encode())
        digest.update(body)
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
                content = json.loads((folder / NAME).read_text())
                same = content["key"] == key
                self.values = dict(content["values"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"out must hold a readable {NAME}, got {error!r}") from error
            if not same:
                raise ValueError(
                    f"out must be empty or hold this calibration, got that of another model input, "
                    f"solver or guidance in {folder}"
                )
        elif results := [name for name in RESULTS if (folder / name).exists()]:
            raise ValueError(
                "out must be empty or hold this calibration, "
                f"got {folder} with {results[0]} and no {NAME}"
            )
        # Now rather than after the first full run: is the folder writable?
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
        path = self._file(name)
        if not path.is_file():
            return None
        try:
            return load_file(path, device=str(device))
        except SafetensorError as error:
            raise ValueError(f"out must hold a readable {path.name}, got {error}") from error

    def put_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors."""
        if self.folder is None:
            self.tensors[name] = tensors
            return
        with replacing(self._file(name)) as hidden:
            save_file({key: value.contiguous() for key, value in tensors.items()}, hidden)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}-{self.key}.safetensors"

    def _write(self) -> None:
        write_json(self.folder / NAME, {"key": self.key, "values": self.values})
