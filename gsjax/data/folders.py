"""Pictures in a folder, at any depth."""

import os
import pathlib
from collections.abc import Iterator

import tensorflow as tf

from gsjax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def list_pictures(root: str) -> tuple[list[str], list[str]]:
    """Lists a folder, on a local disk or as `gs://...`.

    Returns:
      Sorted relative paths of all pictures, told by their extensions, and the sorted sub-folders.
      What is hidden is left out.

    Raises:
      UserError: a folder cannot be read.
    """
    names: list[str] = []
    folders: set[str] = set()
    for folder, files in _walk_bucket(root) if "://" in root else _walk(root):
        inner = folder[len(root) :].strip("/")
        parts = inner.split("/") if inner else []
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        folders.update(parts[:1])
        names += [
            "/".join([*parts, file])
            for file in files
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        ]
    return sorted(names), sorted(folders)


def _walk_bucket(root: str) -> Iterator[tuple[str, list[str]]]:
    for folder, _, files in tf.io.gfile.walk(root):
        yield folder, files


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Every folder with its files, through links, for a labelled folder is often one of links.

    The kinds of entries come with their names, without a system call for each file. A pipe, whose
    reading would not end, is no file.
    """
    try:
        with os.scandir(folder) as opened:
            entries = list(opened)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    yield folder, [entry.name for entry in entries if _is_file(entry)]
    for entry in entries:
        if _is_folder(entry):
            yield from _walk(entry.path)


def _is_file(entry: os.DirEntry) -> bool:
    """Also a link to nowhere: that a picture is missing is told when it is read."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _is_folder(entry: os.DirEntry) -> bool:
    """But for a link to a folder that holds it, through which a walk would never end."""
    if entry.is_symlink():
        path = pathlib.Path(entry.path)
        return path.is_dir() and not path.parent.resolve().is_relative_to(path.resolve())
    return entry.is_dir()
