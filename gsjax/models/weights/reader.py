"""Reads the tensors of a weights file or folder, without running code in it."""

import io
import json
import os
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from gsjax.errors import UserError
from gsjax.models.weights import pytorch
from gsjax.models.weights.pytorch import Tensor
from gsjax.runtime import files, output, pickles

# Files of a folder in the order in which they are preferred: timm, Hugging Face, gsjax.
FOLDER_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

_HEAD = 100  # bytes
_OTHERS = {  # what else a file may begin with
    b"<": "an HTML page",
    b"version https://git-lfs": "a pointer of Git LFS; git lfs pull fetches the file",
}
_LONGEST_KEY = 120  # characters, in messages
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Content(NamedTuple):
    """What a weights file or folder holds.

    Attributes:
      path: the file with the tensors.
      tensors: {key: tensor}, the keys of nested dictionaries joined by dots.
      entries: the keys of the outermost dictionary, also those without tensors.
      config: the folder's `config.json`; empty without.
    """

    path: epath.Path
    tensors: dict[str, Tensor]
    entries: tuple[str, ...]
    config: dict[str, Any]


def read(path: str) -> Content:
    """Reads a `.safetensors`, `.pth`, `.pt` or `.pkl` file, or a folder with one of timm's names.

    A file with such a name is read as its folder, with the `config.json` next to it.

    Raises:
      UserError: there is no such file, it is damaged or of another kind, or it contains code.
    """
    found = files.absolute(path)
    config: dict[str, Any] = {}
    if found.is_dir():
        config = _config(found / "config.json")
        names = [name for name in FOLDER_FILES if (found / name).exists()]
        if not names:
            raise UserError(
                f"no weights in {files.shown(found)}: a folder needs {' or '.join(FOLDER_FILES)}"
            )
        found = found / names[0]
    elif not found.exists():
        raise UserError(f"there is no file {files.shown(found)} with weights")
    elif not (files.is_remote(found) or os.path.isfile(found)):  # epath counts pipes and devices
        raise UserError(f"{files.shown(found)} is not a regular file")
    elif found.name in FOLDER_FILES:
        config = _config(found.parent / "config.json")
    try:
        loaded = _sharded(found) if found.suffix == ".json" else _load(found)
    except pickles.UnsafePickle as error:
        raise UserError(
            f"{files.shown(found)} contains {error}, which is no tensor and was not run: save its "
            "state_dict alone, best as .safetensors"
        ) from error
    except (ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"{files.shown(found)} cannot be read as weights: {error}") from error
    except files.error_types() as error:
        raise UserError(f"{files.shown(found)} cannot be read: {files.reason(error)}") from error
    return Content(found, *loaded, config)


def shown(key: str) -> str:
    """Returns a key as it is shown in messages: on one line, and cut if it is very long."""
    return output.escaped(key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}...")


def _config(file: epath.Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{files.shown(file)} cannot be read: {error}") from error
    return config if isinstance(config, dict) else {}


def _load(file: epath.Path) -> pytorch.Loaded:
    data = file.read_bytes()
    if not data:
        raise ValueError("it is empty")
    for begin, what in _OTHERS.items():
        if data[:_HEAD].lstrip()[: len(begin)].lower() == begin:
            raise ValueError(f"it is {what}")
    if data[:2] == b"PK" and not zipfile.is_zipfile(io.BytesIO(data)):
        raise ValueError("it ends early; download or copy it again")
    if file.suffix != ".safetensors":
        return pytorch.load(data)
    tensors: dict[str, Tensor] = {
        name: _Stored(entry) for name, entry in safetensors.deserialize(data)
    }
    return pytorch.Loaded(tensors, tuple(tensors))


def _sharded(index: epath.Path) -> pytorch.Loaded:
    content = json.loads(index.read_text())
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise ValueError("it has no weight_map from keys to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if "/" in name or not name.endswith(".safetensors"):
            raise ValueError(f"it names {name!r}, which is no .safetensors file next to it")
        part = _load(index.parent / name).tensors
        tensors.update({key: part[key] for key in part if weight_map.get(key) == name})
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise ValueError(f"{missing[0]} is missing in {weight_map[missing[0]]}")
    return pytorch.Loaded(tensors, tuple(tensors))


class _Stored:
    """A tensor of a .safetensors file."""

    def __init__(self, entry: dict[str, Any]) -> None:
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"it holds tensors of an unknown type ({entry['dtype']})")
        self.shape, self._entry = tuple(entry["shape"]), entry

    def array(self) -> np.ndarray:
        entry = self._entry
        return np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(self.shape)
