"""Finds the images in a folder, at any depth."""

import collections
import functools
import itertools
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gsjax.data.paths import encoded, is_remote
from gsjax.errors import UserError
from gsjax.runtime import files, metrics
from gsjax.runtime.tensorflow_setup import tf

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")

# Litter of desktops, network drives and archives, in lower case. Hidden names count as litter too.
_LITTER = {
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # network drives
    *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini"),
    *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
    *("lost+found", "__pycache__"),
}


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
      names: image paths relative to the folder, in byte order.
      folders: its direct subfolders that were read, in byte order.
      ignored: number of files without an image extension, by extension in lower case.
      duplicates: (path of or below a link, path under which its images are already listed).
    """

    names: list[str]
    folders: list[str]
    ignored: collections.Counter[str]
    duplicates: list[tuple[str, str]]


def list_images(root: str) -> Listing:
    """Lists the images in a folder, on a local disk or at `gs://...`.

    Links are followed, because labeled folders often consist of links, but each file and each
    folder counts once. Of several paths to a file, the one with the fewest links is used; ties go
    to the first link in sorted order. Hard links are separate files, as in every other program. A
    link to a folder that contains the link or the root leads nowhere new and is skipped. A link to
    a missing file is listed; reading it reports the image as missing. Hidden files and folders and
    operating system litter are skipped.

    Raises:
      UserError: a folder cannot be read.
    """
    walk = _walk_bucket(root) if is_remote(root) else _Walk(root)
    in_order = sorted if is_remote(root) else in_byte_order
    return Listing(
        in_order(walk.names), in_order([*walk.folders]), walk.ignored, in_order(walk.duplicates)
    )


def in_byte_order(names: Sequence) -> list:
    """Sorts paths, or tuples of them, by bytes; the order does not depend on the locale."""
    texts = names if not names or isinstance(names[0], str) else itertools.chain(*names)
    if all(map(str.isascii, texts)):
        return sorted(names)
    return sorted(names, key=lambda n: encoded(n) if isinstance(n, str) else [*map(encoded, n)])


class _Found:
    """What a walk collects."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.folders: set[str] = set()
        self.ignored: collections.Counter[str] = collections.Counter()
        self.duplicates: list[tuple[str, str]] = []

    def ignore(self, name: str) -> None:
        self.ignored[os.path.splitext(name)[1].lower()] += 1


class _Walk(_Found):
    """A walk through a local folder.

    Reads the folders below the root first, then those behind their links, then those behind the
    links found there, and so on. Listing a folder also gives the type of each entry, so a file that
    is not a link needs no system call of its own.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
        self._shown_root = root
        self._root = os.path.realpath(root)
        self._paths: dict[str, str] = {}  # of folders already read, by real path
        self._linked: dict[str, str] = {}  # of files outside these, by real path
        self._links: list[tuple[str, str]] = []  # to be followed: path below the root, real path
        self._real_folders: dict[tuple[str, str], str] = {}
        self._read(self._root, "")
        while self._links:
            links, self._links = in_byte_order(self._links), []
            for path, link in links:
                self._follow(path, link)

    def _read(self, real: str, path: str) -> None:
        """Reads a folder and everything below it except links."""
        folders = [(real, path)]
        while folders:
            real, path = folders.pop()
            if real in self._paths:
                self.duplicates.append((path, self._paths[real]))
                continue
            self._paths[real] = path
            if path:
                self.folders.add(path.split("/", 1)[0])
            try:
                self._read_one(real, f"{path}/" if path else "", folders)
            except OSError as error:
                shown = files.shown(os.path.join(self._shown_root, path))
                raise UserError(f"{shown} cannot be read: {error.strerror}") from error

    def _read_one(self, real: str, prefix: str, folders: list[tuple[str, str]]) -> None:
        with os.scandir(real) as entries:
            for entry in entries:
                name = entry.name
                lower = name.lower()
                if name[0] == "." or lower in _LITTER:
                    continue
                # A pipe, which would block when read, is none of the three.
                if entry.is_file(follow_symlinks=False):
                    if not lower.endswith(EXTENSIONS):
                        self.ignore(name)
                    elif self._linked and entry.path in self._linked:
                        self.duplicates.append((prefix + name, self._linked[entry.path]))
                    else:
                        self.names.append(prefix + name)
                elif entry.is_symlink():
                    self._links.append((prefix + name, entry.path))
                elif entry.is_dir():
                    folders.append((entry.path, prefix + name))

    def _follow(self, path: str, link: str) -> None:
        try:
            mode = os.stat(link).st_mode
            target = self._real_file(link) if stat.S_ISREG(mode) else os.path.realpath(link)
        except OSError:
            if is_image(path):  # reported as missing when read
                self.names.append(path)
            return
        if stat.S_ISDIR(mode):
            if not _contains(target, self._root) and not _contains(target, os.path.dirname(link)):
                self._read(target, path)
            elif target in self._paths:
                self.duplicates.append((path, self._paths[target]))
        elif stat.S_ISREG(mode) and is_image(path):
            known = self._path_of(target)
            if known is None:
                self._linked[target] = path
                self.names.append(path)
            else:
                self.duplicates.append((path, known))
        elif stat.S_ISREG(mode):
            self.ignore(path)

    def _real_file(self, link: str) -> str:
        """Like os.path.realpath, but resolves a folder that many links point to only once."""
        target, slash, name = os.readlink(link).rpartition("/")
        folder = link.rpartition("/")[0], target + slash
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(os.path.join(*folder))
        real = f"{self._real_folders[folder]}/{name}"
        if name in ("", ".", "..") or stat.S_ISLNK(os.lstat(real).st_mode):
            return os.path.realpath(link)
        return real

    def _path_of(self, real: str) -> str | None:
        """The path under which a file is already listed."""
        folder, _, name = real.rpartition("/")
        path = self._paths.get(folder or "/")
        if path is None or _is_litter(name) or not is_image(name):
            return self._linked.get(real)
        return os.path.join(path, name)


def _walk_bucket(root: str) -> _Found:
    found = _Found()
    try:
        for folder, _, names in tf.io.gfile.walk(root):
            path = folder[len(root) :].strip("/")
            parts = path.split("/") if path else []
            if any(map(_is_litter, parts)):
                continue
            found.folders.update(parts[:1])
            for name in names:
                if not _is_litter(name) and not is_image(name):
                    found.ignore(name)
                elif not _is_litter(name):
                    found.names.append("/".join([*parts, name]))
    except tf.errors.OpError as error:
        raise UserError(f"{root} cannot be read: {files.reason(error)}") from error
    return found


def class_labels(name: str, listing: Listing) -> np.ndarray:
    """Returns the class folder's number for each image, int32 [N].

    A class folder without images is still a class, so that two splits with the same folders agree;
    a message reports it. An image that is also linked from another class belongs to the class of
    its path in the listing; a message reports that, too.

    Args:
      name: name of the root, for messages.
      listing: images in the root.

    Raises:
      UserError: an image is not in a class folder.
    """
    loose = [path for path in listing.names if "/" not in path]
    if loose:
        raise UserError(
            f"{name} is a labeled split, but {files.shown(loose[0])} is not in a class folder: "
            f"put each image in {name}/<class>/"
        )
    numbers = {folder: number for number, folder in enumerate(listing.folders)}
    labels = np.array([numbers[path.split("/", 1)[0]] for path in listing.names], np.int32)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(numbers)) == 0)
    if len(empty):
        which = _first_few([files.shown(listing.folders[number]) for number in empty])
        _log_once(f"{name}: {len(empty)} of {len(numbers)} class folders have no images: {which}")
    moved = [
        (path, known)
        for path, known in listing.duplicates
        if path.split("/", 1)[0] != known.split("/", 1)[0]
    ]
    if moved:
        path, known = map(files.shown, moved[0])
        more = f" ({len(moved)} such links)" if len(moved) > 1 else ""
        _log_once(f"{name}: {path} links to {known}, whose class is used{more}")
    return labels


def report_ignored(name: str, listing: Listing) -> None:
    """Reports, once per process, which files other than images a folder holds."""
    if listing.ignored:
        common = sorted(listing.ignored.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{files.shown(kind) or 'no extension'} {number}" for kind, number in common]
        _log_once(
            f"ignored {listing.ignored.total()} files in {name} without an image extension: "
            f"{_first_few(kinds)}"
        )


@functools.cache
def _log_once(line: str) -> None:
    """Prints a line on the first host, once per process however often a folder is opened."""
    metrics.log(line)


def _first_few(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_image(name: str) -> bool:
    """Whether the extension is that of an image."""
    return name.lower().endswith(EXTENSIONS)


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _contains(folder: str, inner: str) -> bool:
    return f"{inner}/".startswith(folder if folder.endswith("/") else f"{folder}/")
