"""Features kept on disk, so that the next evaluation of the same encoder need not extract them."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import jax
import numpy as np
from etils import epath

from gsjax.errors import UserError
from gsjax.evaluate.features import Features
from gsjax.runtime import files, lock, metrics, parallel


def digest(tree: Any) -> str:
    """SHA-256 of all arrays of a tree: tells one encoder from every other."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)  # a string as well
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def key_of(**parts: Any) -> str:
    """A text that is equal only where all parts are."""
    return json.dumps(parts, sort_keys=True, default=str)


def load(folder: epath.Path, key: str) -> Features | None:
    """Returns the features that were saved under the very same key, or None.

    A file that is damaged or of another key is not used.
    """
    try:
        with _path(folder, key).open("rb") as file, np.load(file, allow_pickle=False) as saved:
            if str(saved["key"]) != key:
                return None
            return Features(*(saved[name] for name in Features._fields))
    except files.error_types(ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save(folder: epath.Path, key: str, features: Features) -> None:
    """Keeps features; a disk that is full costs the copy, not the evaluation."""
    if not parallel.is_primary():
        return
    path = _path(folder, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock.turn(path):
            write_npz(path, {"key": np.array(key), **features._asdict()})
    except files.error_types(UserError) as error:
        metrics.say(f"features are not kept in {files.shown(folder)}: {files.reason(error)}")


def write_npz(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")  # the same each time: what a kill leaves is large
    with files.taking_the_place_of(path, new), new.open("wb") as file:
        np.savez(_OneWay(file), allow_pickle=False, **arrays)


class _OneWay(io.RawIOBase):
    """A file that is written from its beginning to its end, as one in a bucket has to be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(bytes(data))
        return len(data)


def _path(folder: epath.Path, key: str) -> epath.Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
