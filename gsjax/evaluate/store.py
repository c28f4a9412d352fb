"""Keeps features on disk, so later evaluations of the same encoder need not extract them."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import jax
import numpy as np
from etils import epath

from gsjax.data.source import Source
from gsjax.errors import UserError
from gsjax.evaluate.features import Features
from gsjax.runtime import files, lock, metrics, parallel


def digest(tree: Any) -> str:
    """SHA-256 of all arrays of a tree; identifies an encoder."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)  # works for strings too
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def files_digest(source: Source) -> str:
    """SHA-256 of names, sizes and times of a source's files; tells whether they have changed."""
    return digest(np.array(source.files(), dtype=str))


def key_of(**parts: Any) -> str:
    """A string that is equal only if all parts are."""
    return json.dumps(parts, sort_keys=True, default=str)


def load(folder: epath.Path, key: str) -> Features | None:
    """Returns the features saved under exactly this key, or None.

    A file that is damaged or has another key is not used.
    """
    try:
        with _path(folder, key).open("rb") as file, np.load(file, allow_pickle=False) as saved:
            if str(saved["key"]) != key:
                return None
            return Features(*(saved[name] for name in Features._fields))
    except files.error_types(ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save(folder: epath.Path, key: str, features: Features) -> None:
    """Saves features; a full disk costs the copy, not the evaluation."""
    if not parallel.is_primary():
        return
    path = _path(folder, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.exclusive(path):
            write_npz(path, {"key": np.array(key), **features._asdict()})
    except files.error_types(UserError) as error:
        metrics.log(f"cannot keep features in {files.shown(folder)}: {files.reason(error)}")


def write_npz(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")  # a fixed name: what a kill leaves behind is large
    with files.replacing(path, new), new.open("wb") as file:
        np.savez(_OneWay(file), allow_pickle=False, **arrays)


class _OneWay(io.RawIOBase):
    """A file that can only be written sequentially, as required in a bucket."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(bytes(data))
        return len(data)


def _path(folder: epath.Path, key: str) -> epath.Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
