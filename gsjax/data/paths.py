"""Queries about data paths, local or in a bucket, which may hold arbitrary bytes."""

import os
import re
from collections.abc import Callable
from typing import Any

from etils import epath

from gsjax.errors import UserError
from gsjax.runtime import files
from gsjax.runtime.tensorflow_setup import tf


def is_remote(path: str) -> bool:
    """Whether a path is in a bucket, such as gs://...; a local one may contain :// too."""
    return "://" in path and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def encoded(path: str) -> bytes:
    """The bytes of a path for TensorFlow, whatever the locale; UTF-8 or not."""
    if path.isascii() or is_remote(path):  # isascii for speed
        return path.encode()
    return os.fsencode(path)


def as_path(setting: str, path: str) -> epath.Path:
    """Returns the folder that a setting names.

    Raises:
      UserError: epath would take it for a bucket of an unknown kind.
    """
    try:
        folder = epath.Path(path).expanduser()
        folder.exists()
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{setting}={files.shown(path)} cannot be read: only bucket paths (gs://...) may "
            "contain ://"
        ) from error
    return folder


def is_utf8(path: str) -> bool:
    """Whether a library that encodes the path as UTF-8 would find it."""
    return encoded(path) == path.encode("utf-8", "surrogatepass")


def is_folder(path: str) -> bool:
    """Whether the folder exists, locally or in a bucket.

    Raises:
      UserError: the bucket cannot be queried.
    """
    return _query(tf.io.gfile.isdir, path) if is_remote(path) else os.path.isdir(path)


def exists(path: str) -> bool:
    """Whether the file or folder exists; errors as for `is_folder`."""
    return _query(tf.io.gfile.exists, path) if is_remote(path) else os.path.exists(path)


def names_in(folder: str) -> list[str]:
    """The names in a folder, in no particular order; empty if there is no such folder.

    Raises:
      UserError: it cannot be read.
    """
    if is_remote(folder):
        found = _query(tf.io.gfile.isdir, folder)
        return [name.rstrip("/") for name in _query(tf.io.gfile.listdir, folder)] if found else []
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{files.shown(folder)} cannot be read: {error.strerror}") from error


def version_folder(folder: str) -> str | None:
    """The first folder with files in it that is named like a TFDS data set's version."""
    walk = tf.io.gfile.walk if is_remote(folder) else os.walk
    try:
        for inner, _, names in walk(folder):
            if names and re.search(r"[/_]\d+\.\d+\.\d+$", inner):
                return inner
    except tf.errors.OpError:
        pass
    return None


def read_lines(path: str) -> list[str]:
    """Returns the non-empty lines of a text file, stripped.

    Bytes that are not UTF-8 become surrogates, as in file names (PEP 383).

    Raises:
      UserError: it cannot be read.
    """
    try:
        text = tf.io.gfile.GFile(encoded(path), "rb").read().decode("utf-8", "surrogateescape")
    except tf.errors.OpError as error:
        raise UserError(f"{files.shown(path)} cannot be read: {files.reason(error)}") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def _query(query: Callable, path: str) -> Any:
    try:
        return query(path)
    except tf.errors.OpError as error:
        raise UserError(f"{files.shown(path)} cannot be read: {files.reason(error)}") from error
